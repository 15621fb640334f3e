"""The published models: this module owns which geometry each name means, and the way back."""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType

from ...errors import ArgsError
from .values import WanGeometry

_SMALL = WanGeometry(dim=1536, ffn_dim=8960, num_layers=30, num_heads=12)
_LARGE = WanGeometry()
_WITH_IMAGE = replace(_LARGE, in_channels=36, image_dim=1280, added_kv=True)

# Sources: the vendors' config.json of each model (Wan-AI on the Hugging Face hub).
VARIANTS: Mapping[str, WanGeometry] = MappingProxyType(
    {
        "wan2.1-t2v-1.3b": _SMALL,
        "wan2.1-t2v-14b": _LARGE,
        "wan2.1-i2v-14b": _WITH_IMAGE,
        "wan2.1-flf2v-14b": replace(_WITH_IMAGE, pos_embed_seq_len=514),
        "wan2.1-vace-1.3b": replace(
            _SMALL, vace_layers=tuple(range(0, 30, 2)), vace_in_channels=96
        ),
        "wan2.1-vace-14b": replace(_LARGE, vace_layers=tuple(range(0, 40, 5)), vace_in_channels=96),
        "wan2.2-t2v-a14b": _LARGE,
        "wan2.2-i2v-a14b": replace(_LARGE, in_channels=36),
        "wan2.2-ti2v-5b": WanGeometry(
            dim=3072, ffn_dim=14336, num_layers=30, num_heads=24, in_channels=48, out_channels=48
        ),
    }
)


def find_variant(name: str) -> WanGeometry:
    """The geometry of a published model, by name in any case. Raises ArgsError."""
    wanted = name.strip().lower().replace("_", "-")
    if wanted in VARIANTS:
        return VARIANTS[wanted]
    close = get_close_matches(wanted, VARIANTS, n=1)
    hint = f"did you mean {close[0]!r}, of" if close else "use one of"
    raise ArgsError(f"Unknown variant: {name!r}: {hint} {', '.join(VARIANTS)}")


def name_variants(geometry: WanGeometry) -> tuple[str, ...]:
    """Every published model of this geometry, in either spelling; more than one may share it."""
    plain = replace(geometry, naming="original")
    return tuple(name for name, known in VARIANTS.items() if known == plain)


def name_variant(geometry: WanGeometry) -> str | None:
    """The published models of this geometry, joined by " or "; None for an unpublished one."""
    return " or ".join(name_variants(geometry)) or None
