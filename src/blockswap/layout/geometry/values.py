"""The shape of a Wan transformer as one value, in the vendors' own terms."""

from dataclasses import dataclass, field
from typing import Literal

Naming = Literal["original", "diffusers"]

WAN_EPS = 1e-6  # every published model's norms
ROPE_POSITIONS = 1024  # frames, rows or columns of patches that every published model's tables hold


@dataclass(frozen=True, slots=True)
class WanGeometry:
    """What fixes every tensor of a Wan transformer, and the numbers shapes do not show.

    `num_heads`, `vace_layers` (positions of the blocks that VACE hints are added to), `eps` and
    `rope_max_seq_len` leave no trace in shapes. `image_dim` is the width of the image features,
    None without `img_emb`; `added_kv` says whether blocks attend to them; `pos_embed_seq_len` is
    the length of the image position embedding of first-and-last-frame models. `extras` are keys
    beside the model's own that a quantised file adds (scales), `unused` those that no forward
    reads; both as the file spells them, and neither takes part in comparison.
    """

    naming: Naming = "original"
    dim: int = 5120
    ffn_dim: int = 13824
    num_layers: int = 40
    num_heads: int = 40
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    image_dim: int | None = None
    added_kv: bool = False
    qk_norm: bool = True
    cross_attn_norm: bool = True
    vace_layers: tuple[int, ...] = ()
    vace_in_channels: int | None = None
    pos_embed_seq_len: int | None = None
    eps: float = WAN_EPS
    rope_max_seq_len: int = ROPE_POSITIONS
    extras: tuple[str, ...] = field(default=(), compare=False)
    unused: tuple[str, ...] = field(default=(), compare=False)

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def num_vace_blocks(self) -> int:
        return len(self.vace_layers)
