"""Wan-Video's own blocks in pieces: which are known, and how one runs for some of the tokens.

Its model is a skeleton that a user gives; the model's forward stays its own, and blocks write
into nothing that it hands them. Known by name and arguments; whether it computes what is known
here, a small block of the same class shows.
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .family import LAYERS, Family, Loan, Small
from .modulation import of_sample
from .visit import Keys, Piece, Visit, run

_ARGUMENTS = ("x", "e", "seq_lens", "grid_sizes", "freqs", "context", "context_lens")
_FUNCTIONS = ("rope_apply", "flash_attention")
_IMAGE = "WanI2VCrossAttention"
_CROSSING = ("WanCrossAttention", "WanT2VCrossAttention", _IMAGE)
_TEXT_TOKENS = 512  # what comes before the last 512 is the image's
_DIM, _HEADS, _GRID = 24, 2, (6, 5, 5)


class VendorFamily(Family):
    """`WanAttentionBlock` of Wan-Video's repositories, of Wan 2.1 and 2.2."""

    layers = LAYERS | {"WanSelfAttention", "WanRMSNorm", "WanLayerNorm", *_CROSSING}

    def is_block(self, block: torch.nn.Module) -> bool:
        kind, parts = type(block), vars(block).get("_modules", {})
        taken = tuple(inspect.signature(kind.forward).parameters)[1:]
        if kind.__name__ != "WanAttentionBlock" or taken != _ARGUMENTS:
            return False
        inside = type(parts.get("self_attn")), type(parts.get("cross_attn"))
        named = inside[0].__name__ == "WanSelfAttention" and inside[1].__name__ in _CROSSING
        there = all(hasattr(_module(block), name) for name in _FUNCTIONS)
        return named and there and {part.__module__ for part in inside} == {kind.__module__}

    def tokens(self, given: dict[str, Any]) -> int | None:
        hidden = given.get("x")
        return hidden.shape[1] if isinstance(hidden, torch.Tensor) and hidden.dim() == 3 else None

    def why_call(self, block: Any, given: dict[str, Any]) -> str | None:
        if given["context_lens"] is not None:
            return "its texts have lengths of their own"
        if tuple(block.self_attn.window_size) != (-1, -1):
            return "its attention looks through a window"
        if given["e"].dim() not in (3, 4):
            return f"its time embedding is of shape {tuple(given['e'].shape)}"
        return None

    def run_block(
        self, block: Any, given: dict[str, Any], pieces: tuple[Piece, ...], loan: Loan
    ) -> torch.Tensor:
        hidden = given["x"]
        dtype = torch.promote_types(hidden.dtype, given["e"].dtype)  # of the gates that are added
        out = torch.empty(hidden.shape, dtype=dtype, device=hidden.device)
        return run(VendorVisit(block, given, pieces), hidden, out)

    def small(self, root: Any) -> Small | None:
        block = next((part for part in root.modules() if self.is_block(part)), None)
        if block is None:
            return None
        parts = (block, block.self_attn, block.cross_attn, block.norm1, block.self_attn.norm_q)
        key = (*(type(part).forward for part in parts), _module(block).rope_apply)
        return Small(
            ("vendor", *key), lambda: _SmallModel(block), lambda model: _run_small(model, block)
        )


VENDOR = VendorFamily()


def _module(block: torch.nn.Module) -> Any:
    return sys.modules.get(type(block).__module__)


class VendorVisit(Visit):
    """One run of one block. Its attention is looked up where the block's own finds it."""

    def __init__(self, block: Any, given: dict[str, Any], pieces: tuple[Piece, ...]) -> None:
        self._block, self.pieces, self._given = block, pieces, given
        self._attend = _module(block).flash_attention
        self._tables = [_table(given["freqs"], grid) for grid in given["grid_sizes"].tolist()]
        self._context = self._keys_of_context(given["context"])

    def keys_and_values(self, hidden: torch.Tensor, sample: int, piece: Piece) -> Keys:
        attention, normed = self._block.self_attn, self._normed(hidden, sample, piece)
        key = self._turned(attention.norm_k(attention.k(normed)), sample, piece)
        return key, self._headed(attention.v(normed))

    def finished(self, hidden: torch.Tensor, keys: Keys, sample: int, piece: Piece) -> torch.Tensor:
        block, attention = self._block, self._block.self_attn
        normed = self._normed(hidden, sample, piece)
        query = self._turned(attention.norm_q(attention.q(normed)), sample, piece)
        del normed
        lengths = self._given["seq_lens"][sample : sample + 1]
        seen = self._attend(
            q=query, k=keys[0], v=keys[1], k_lens=lengths, window_size=attention.window_size
        )
        del query
        hidden = hidden + attention.o(seen.flatten(2)) * self._vector(2, sample, piece)
        del seen
        hidden = hidden + self._crossed(block.norm3(hidden), sample)
        shift, scale = self._vector(3, sample, piece), self._vector(4, sample, piece)
        forwarded = block.ffn(block.norm2(hidden).float() * (1 + scale) + shift)
        done: torch.Tensor = hidden + forwarded * self._vector(5, sample, piece)
        return done

    def _normed(self, hidden: torch.Tensor, sample: int, piece: Piece) -> torch.Tensor:
        shift, scale = self._vector(0, sample, piece), self._vector(1, sample, piece)
        normed: torch.Tensor = self._block.norm1(hidden).float() * (1 + scale) + shift
        return normed

    def _vector(self, number: int, sample: int, piece: Piece) -> torch.Tensor:
        """Shift, scale or gate: `[1, 1 or tokens, dim]`."""
        own, table = of_sample(self._given["e"], sample), self._block.modulation
        if own.dim() == 4:
            rows = own[:, piece[0] : piece[1], number] if own.shape[1] > 1 else own[:, :, number]
            made: torch.Tensor = table[:, number].unsqueeze(1) + rows
        else:
            made = table[:, number : number + 1] + own[:, number : number + 1]
        return made

    def _headed(self, made: torch.Tensor) -> torch.Tensor:
        return made.view(*made.shape[:2], self._block.num_heads, -1)

    def _turned(self, made: torch.Tensor, sample: int, piece: Piece) -> torch.Tensor:
        """Rotary embedding in fp64, as the host's; what pads the clip has none."""
        heads, table = self._headed(made)[0], self._tables[sample]
        known = max(0, min(piece[1], table.shape[0]) - piece[0])
        wide: Any = heads[:known].to(torch.float64)
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)).contiguous())
        turned = pairs * table[piece[0] : piece[0] + known]
        joined = torch.cat([torch.view_as_real(turned).flatten(2), heads[known:]])
        return joined.unsqueeze(0).float()

    def _keys_of_context(self, text: torch.Tensor) -> tuple[Keys | None, Keys]:
        """Keys and values of image and text, made once a visit."""
        attention, image = self._block.cross_attn, None
        if type(attention).__name__ == _IMAGE:
            of_image = text.shape[1] - _TEXT_TOKENS
            seen, text = text[:, :of_image], text[:, of_image:]
            key = attention.norm_k_img(attention.k_img(seen))
            image = self._headed(key), self._headed(attention.v_img(seen))
        own = self._headed(attention.norm_k(attention.k(text))), self._headed(attention.v(text))
        return image, own

    def _crossed(self, normed: torch.Tensor, sample: int) -> torch.Tensor:
        """What tokens of one sample see of image and text."""
        attention, (image, text) = self._block.cross_attn, self._context
        query = self._headed(attention.norm_q(attention.q(normed)))
        key, value = (of_sample(part, sample) for part in text)
        seen = self._attend(query, key, value, k_lens=None).flatten(2)
        if image is not None:
            key, value = (of_sample(part, sample) for part in image)
            seen = seen + self._attend(query, key, value, k_lens=None).flatten(2)
        crossed: torch.Tensor = attention.o(seen)
        return crossed


def _table(freqs: torch.Tensor, grid: list[int]) -> torch.Tensor:
    """Rotary factors of a clip's tokens, `[tokens, 1, half of head_dim]`, of its three axes."""
    half, (frames, rows, columns) = freqs.shape[1], grid
    axes = torch.split(freqs, [half - 2 * (half // 3), half // 3, half // 3], dim=1)
    size = frames, rows, columns, -1
    along = (
        axes[0][:frames].view(frames, 1, 1, -1).expand(size),
        axes[1][:rows].view(1, rows, 1, -1).expand(size),
        axes[2][:columns].view(1, 1, columns, -1).expand(size),
    )
    return torch.cat(along, dim=-1).reshape(frames * rows * columns, 1, -1)


class _SmallModel(torch.nn.Module):
    """Two blocks of the class with random weights, and inputs as its model gives them."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        kind = type(block)
        named: dict[str, Any] = {"dim": _DIM, "ffn_dim": 2 * _DIM, "num_heads": _HEADS}
        self.of_tokens = "cross_attn_type" not in inspect.signature(kind).parameters
        self.image = type(block.cross_attn).__name__ == _IMAGE
        if not self.of_tokens:
            named["cross_attn_type"] = "i2v_cross_attn" if self.image else "t2v_cross_attn"
        named |= {"qk_norm": block.qk_norm, "cross_attn_norm": block.cross_attn_norm}
        self.blocks = torch.nn.ModuleList(kind(**named) for _ in range(2))
        self.requires_grad_(False)

    def forward(self) -> torch.Tensor:
        tokens = _GRID[0] * _GRID[1] * _GRID[2]
        phases = torch.randn(16, _DIM // _HEADS // 2, dtype=torch.float64, device="cpu")
        shared = {
            "seq_lens": torch.tensor([tokens], device="cpu"),
            "grid_sizes": torch.tensor([_GRID], device="cpu"),
            "freqs": torch.polar(torch.ones_like(phases), phases),
            "context": _drawn(1, 4 * self.image + _TEXT_TOKENS, _DIM),
            "context_lens": None,
        }
        hidden, seen = _drawn(1, tokens + 20, _DIM), []  # padded
        times = [_drawn(1, 6, _DIM), *([_drawn(1, tokens + 20, 6, _DIM)] * self.of_tokens)]
        for some in times:
            for block in self.blocks:
                hidden = block(hidden, e=some, **shared)
                seen.append(hidden)
        return torch.cat(seen)


def _run_small(model: Any, block: Any) -> torch.Tensor:
    """Its attention is for graphics cards: here another stands in for it, both ways."""
    with _plain_attention(_module(block)), torch.no_grad():
        made: torch.Tensor = model()
    return made


@contextmanager
def _plain_attention(module: Any) -> Iterator[None]:
    before = module.flash_attention

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, k_lens: Any = None, **_: Any
    ) -> torch.Tensor:
        last = k.shape[1] if k_lens is None else int(k_lens[0])
        q, k, v = (part.transpose(1, 2) for part in (q, k[:, :last], v[:, :last]))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    module.flash_attention = attend
    try:
        yield
    finally:
        module.flash_attention = before


def _drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float32, device="cpu")
