"""ComfyUI's Wan blocks in pieces of tokens: their own arithmetic, layer by layer, for some tokens.

Such a block never writes into what it is handed by the host's forward: models, caches and block
patches of other packs read a block's input after it has run. Our own of the VACE model lends it.
"""

from typing import Any

import torch

from ...pieces import (
    LAYERS,
    Cut,
    Family,
    Keys,
    Loan,
    Piece,
    Small,
    Visit,
    made_once,
    run,
    run_between,
)
from ..seams import host_wan
from ..seams.host_names import why_not_cut
from .vace_forward import run_vace, vace_tokens

_DIM, _HEADS, _TOKENS, _TEXT, _IMAGE, _FRAMES = 24, 2, 150, 12, 4, 6


class WanFamily(Family):
    """The blocks of ComfyUI's Wan models, VACE blocks included."""

    layers = LAYERS | {
        *("WanSelfAttention", "WanT2VCrossAttention", "WanI2VCrossAttention", "WanFeedForward"),
    }
    packed_weights = host_wan.PACKED
    model_forward = "forward_orig"

    def is_block(self, block: torch.nn.Module) -> bool:
        return host_wan.is_block(block)

    def tokens(self, given: dict[str, Any]) -> int | None:
        hidden = given.get("c", given.get("x"))
        usual = isinstance(hidden, torch.Tensor) and hidden.dim() == 3 and "x" in given
        return hidden.shape[1] if usual and isinstance(hidden, torch.Tensor) else None

    def why_part(self, name: str, module: torch.nn.Module) -> str | None:
        if host_wan.scales_all_tokens(module):
            return f"its {name} scales all tokens of its input together"
        return None

    def why_call(self, block: Any, given: dict[str, Any]) -> str | None:
        options = given.get("transformer_options") or {}
        if host_wan.OVERRIDE in options:
            override = options[host_wan.OVERRIDE]
            name = getattr(override, "__qualname__", type(override).__name__)
            return f"its attention was replaced ({name}), which may look at all queries together"
        patches = options.get("patches", {})
        if found := [name for name in host_wan.INSIDE if patches.get(name)]:
            return f"a patch ({found[0]}) is called with all tokens of its attention"
        if "context_img_len" not in given and host_wan.looks_at_image(block.cross_attn):
            return "it is not told how much of its context is of an image"
        return _why_inputs(given)

    def run_block(
        self, block: Any, given: dict[str, Any], pieces: tuple[Piece, ...], loan: Loan
    ) -> Any:
        """Nothing is on loan but in our own forward of the VACE model."""
        visit, control = WanVisit(block, given, pieces), given.get("c")
        whole = given["x"].shape[0], given["x"].shape[1]
        with made_once(block, whole, loan.weights):
            if control is None:
                return run(visit, given["x"], loan.take(given["x"]))
            into = block.before_proj if block.block_id == 0 else None
            return run_between(visit, (into, block.after_proj), (given["x"], control), loan)

    def has_model(self, root: torch.nn.Module) -> bool:
        return host_wan.is_vace(root) and host_wan.knows_vace(root)

    def model_tokens(self, root: Any, given: dict[str, Any]) -> int | None:
        return vace_tokens(root, given)

    def run_model(self, root: Any, given: dict[str, Any], cut: Cut, loan: Loan) -> Any:
        return run_vace(root, given, loan)

    def why_hosts_own(self, root: torch.nn.Module) -> str | None:
        if not host_wan.is_vace(root) or host_wan.knows_vace(root):
            return None
        return (
            "the forward of this VACE model is none that is known (another version's, or another "
            "pack's), so it is left as it is and holds two states more than ours would"
        )

    def why_another(self, root: torch.nn.Module) -> str | None:
        return why_not_cut() if any(map(host_wan.is_block, root.modules())) else None

    def small(self, root: Any) -> Small | None:
        """One block of each kind that the model has; a timestep for all tokens, and one a frame."""
        kinds: dict[Any, Any] = {}
        if why_not_cut() is not None:
            return None
        for block in root.modules():
            if host_wan.is_block(block):
                first = getattr(block, "block_id", 1) == 0
                kinds.setdefault((*host_wan.forwards_of(block), first), block)
        if not kinds:
            return None
        return Small(
            ("comfy", *kinds), lambda: _SmallModel(list(kinds.values())), lambda model: model()
        )


WAN = WanFamily()


def _why_inputs(given: dict[str, Any]) -> str | None:
    """Why a block's inputs are none that the host's own models give."""
    hidden, times, freqs = given.get("c", given["x"]), given.get("e"), given.get("freqs")
    samples, tokens = hidden.shape[:2]
    context = given.get("context")
    for name, value in (("e", times), ("freqs", freqs), ("context", context)):
        if not isinstance(value, torch.Tensor):
            return f"its {name} is no tensor"
    if context is not None and context.shape[0] != samples:
        return f"its context is of {context.shape[0]} samples, its hidden states of {samples}"
    assert times is not None, "a tensor"
    assert freqs is not None, "a tensor"
    if times.dim() not in (3, 4) or times.shape[0] != samples:
        return f"its time embedding is of shape {tuple(times.shape)}"
    if freqs.dim() != 6 or freqs.shape[:2] != (1, tokens):
        return f"its rotary tables are of shape {tuple(freqs.shape)}"
    return None


class WanVisit(Visit):
    """One run of one block."""

    def __init__(self, block: Any, given: dict[str, Any], pieces: tuple[Piece, ...]) -> None:
        self._block, self.pieces = block, pieces
        self.of_keys = (block.self_attn.k, block.self_attn.norm_k, block.self_attn.v)
        hidden = given.get("c", given["x"])
        self._tokens, self._freqs = hidden.shape[1], given["freqs"]
        self._times: torch.Tensor = given["e"]
        self._table = host_wan.like(block.modulation, hidden)
        self._options = given.get("transformer_options") or {}
        self._context = self._keys_of_context(given)

    def keys_and_values(self, hidden: torch.Tensor, sample: int, piece: Piece) -> Keys:
        attention, normed = self._block.self_attn, self._normed(hidden.contiguous(), sample, piece)
        key = self._turned(attention, attention.norm_k(attention.k(normed)), piece)
        return key, attention.v(normed)

    def finished(self, hidden: torch.Tensor, keys: Keys, sample: int, piece: Piece) -> torch.Tensor:
        block, attention = self._block, self._block.self_attn
        hidden = hidden.contiguous()
        normed = self._normed(hidden, sample, piece)
        query = self._turned(attention, attention.norm_q(attention.q(normed)), piece)
        del normed
        seen = attention.o(host_wan.attend(attention, query, keys, self._options))
        del query
        hidden = torch.addcmul(hidden, seen, self._vector(2, sample, piece))
        del seen
        hidden = hidden + self._crossed(block.norm3(hidden), sample)
        shift, scale = self._vector(3, sample, piece), self._vector(4, sample, piece)
        seen = block.ffn(torch.addcmul(shift, block.norm2(hidden), 1 + scale))
        return torch.addcmul(hidden, seen, self._vector(5, sample, piece))

    def _normed(self, hidden: torch.Tensor, sample: int, piece: Piece) -> torch.Tensor:
        shift, scale = self._vector(0, sample, piece), self._vector(1, sample, piece)
        return torch.addcmul(shift, self._block.norm1(hidden), 1 + scale)

    def _turned(self, attention: Any, made: torch.Tensor, piece: Piece) -> torch.Tensor:
        heads = made.view(*made.shape[:2], attention.num_heads, attention.head_dim)
        return host_wan.rotated(heads, self._freqs[:, piece[0] : piece[1]]).flatten(2)

    def _vector(self, number: int, sample: int, piece: Piece) -> torch.Tensor:
        """Shift, scale or gate: `[1, 1 or tokens, dim]`, each row for as many tokens as a frame."""
        own = self._times[sample : sample + 1]
        if own.dim() == 3:
            return self._table[:, number : number + 1] + own[:, number : number + 1]
        rows = own[:, :, number]
        if rows.shape[1] > 1:
            each = -(-self._tokens // rows.shape[1])
            places = torch.arange(*piece, dtype=torch.int64, device=rows.device)
            rows = rows[:, torch.div(places, each, rounding_mode="floor")]
        return self._table[:, number].unsqueeze(0) + rows

    def _keys_of_context(self, given: dict[str, Any]) -> tuple[Keys | None, Keys]:
        """Keys and values of image and text, made once a visit."""
        attention, text = self._block.cross_attn, given["context"]
        image = None
        if host_wan.looks_at_image(attention):
            of_image = given["context_img_len"]
            image, text = text[:, :of_image], text[:, of_image:]
        own = attention.norm_k(attention.k(text)), attention.v(text)
        if image is None:
            return None, own
        return (attention.norm_k_img(attention.k_img(image)), attention.v_img(image)), own

    def _crossed(self, normed: torch.Tensor, sample: int) -> torch.Tensor:
        """What tokens of one sample see of image and text."""
        attention, (image, text) = self._block.cross_attn, self._context
        query = attention.norm_q(attention.q(normed))
        seen = self._seen(query, text, sample)
        if image is not None:
            seen = seen + self._seen(query, image, sample, low_precision_attention=False)
        crossed: torch.Tensor = attention.o(seen)
        return crossed

    def _seen(self, query: torch.Tensor, keys: Keys, sample: int, **more: Any) -> torch.Tensor:
        key, value = (part[sample : sample + 1] for part in keys)
        return host_wan.attend(self._block.cross_attn, query, (key, value), self._options, **more)


class _SmallModel(torch.nn.Module):
    """Blocks of each kind, one behind the other, with random weights."""

    def __init__(self, kinds: list[Any]) -> None:
        super().__init__()
        made = (host_wan.small_block(block, _DIM, _HEADS) for block in kinds)
        self.blocks = torch.nn.ModuleList(made)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.copy_(_drawn(*parameter.shape) / 4)

    def forward(self) -> torch.Tensor:
        shared = {
            "freqs": host_wan.rotary_table(_TOKENS, _DIM // _HEADS),
            "context": _drawn(1, _IMAGE + _TEXT, _DIM),
            "context_img_len": _IMAGE,
            "transformer_options": {},
        }
        hidden, seen = _drawn(1, _TOKENS, _DIM), []
        for times in (_drawn(1, 6, _DIM), _drawn(1, _FRAMES + 1, 6, _DIM)):
            for block in self.blocks:
                if hasattr(block, "after_proj"):
                    seen += block(hidden, x=hidden, e=times, **shared)
                else:
                    hidden = block(hidden, e=times, **shared)
                    seen.append(hidden)
        return torch.cat(seen)


def _drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float32, device="cpu")
