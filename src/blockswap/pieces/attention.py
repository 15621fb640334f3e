"""Keys, values, queries and outputs of diffusers' Wan attention for some of the tokens.

Every product goes through the layer's own submodules, and attention through the host's dispatch
with the backend that the layer's processor names.
"""

from dataclasses import dataclass
from typing import Any

import torch

from ..adapters.diffusers_seam import attend_with, attention_backend
from .modulation import of_sample

TEXT_TOKENS = 512  # what comes before the last 512 is the image's
Rotary = tuple[torch.Tensor, torch.Tensor]
KeysAndValues = tuple[torch.Tensor, torch.Tensor]


def queries(attention: Any, normed: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
    """`[1, tokens, dim]` -> `[1, tokens, heads, head_dim]`."""
    query = attention.norm_q(attention.to_q(normed)).unflatten(2, (attention.heads, -1))
    return query if rotary is None else rotated(query, rotary)


def keys_and_values(
    attention: Any, normed: torch.Tensor, rotary: Rotary | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[batch, tokens, dim]` -> keys and values, `[batch, tokens, heads, head_dim]` each."""
    key = attention.norm_k(attention.to_k(normed)).unflatten(2, (attention.heads, -1))
    value = attention.to_v(normed).unflatten(2, (attention.heads, -1))
    return (key if rotary is None else rotated(key, rotary)), value


@dataclass(frozen=True)
class Context:
    """Keys and values of the text, and of the image where there is one: made once a visit."""

    text: KeysAndValues
    image: KeysAndValues | None = None

    def of(self, sample: int) -> "Context":
        """Those of one sample."""
        text = of_sample(self.text[0], sample), of_sample(self.text[1], sample)
        if self.image is None:
            return Context(text)
        return Context(text, (of_sample(self.image[0], sample), of_sample(self.image[1], sample)))


def context_of(attention: Any, text: torch.Tensor) -> Context:
    """`text`: `[batch, tokens, dim]`, the image's tokens in front."""
    if attention.add_k_proj is None:
        return Context(keys_and_values(attention, text, None))
    of_image = text.shape[1] - TEXT_TOKENS
    image, text = text[:, :of_image], text[:, of_image:]
    key = attention.norm_added_k(attention.add_k_proj(image))
    value = attention.add_v_proj(image)
    heads = (attention.heads, -1)
    own = key.unflatten(2, heads), value.unflatten(2, heads)
    return Context(keys_and_values(attention, text, None), own)


def attended_context(attention: Any, normed: torch.Tensor, context: Context) -> torch.Tensor:
    """What tokens `[1, tokens, dim]` of one sample see of its text and image."""
    query = queries(attention, normed, None)
    image = None if context.image is None else _attend(attention, query, *context.image)
    seen = _attend(attention, query, *context.text)
    return projected(attention, seen if image is None else seen + image)


def attended(
    attention: Any, query: torch.Tensor, keys: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """What the queries of a piece see of all tokens, projected: `[1, tokens, dim]`."""
    return projected(attention, _attend(attention, query, *keys))


def projected(attention: Any, seen: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = attention.to_out[1](attention.to_out[0](seen))
    return output


def _attend(
    attention: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    seen = attend_with(query, key, value, attention_backend(attention.processor))
    return seen.flatten(2, 3).type_as(query)


def rotated(tokens: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotary embedding as the host's processor computes it; tables `[1, tokens, 1, head_dim]`."""
    pairs: Any = tokens
    first, second = pairs.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary[0][..., 0::2], rotary[1][..., 1::2]
    out = torch.empty_like(tokens)
    out[..., 0::2] = first * cos - second * sin
    out[..., 1::2] = first * sin + second * cos
    return out
