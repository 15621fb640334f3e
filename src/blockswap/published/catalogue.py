"""Which published model a name means, and which family a class of diffusers is.

Wan's models are in `layout.geometry.variants`, because a file tells which of them it is.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from ..errors import ArgsError
from ..layout.geometry import variants
from .pictures import FLUX_1, FLUX_2, QWEN_IMAGE, Z_IMAGE
from .record import Family, Published
from .relatives import WAN_ANIMATE
from .videos import HUNYUAN_VIDEO, HUNYUAN_VIDEO_15, LTX_2, MINIMAX_H3

# What differs from the defaults of the class. Inferred: with these, parameters are as many as the
# models are published with; their own configs were not at hand, and a folder's is taken first.
_MODELS = (
    Published("qwen-image", QWEN_IMAGE),
    Published("flux.2-dev", FLUX_2),
    Published("flux.1-dev", FLUX_1, {"guidance_embeds": True}),
    Published("z-image", Z_IMAGE),
    Published("hunyuanvideo-1.5", HUNYUAN_VIDEO_15, {"task_type": "t2v"}),
    Published("hunyuanvideo", HUNYUAN_VIDEO),
    Published("ltx-2", LTX_2, {"rope_type": "split"}),
    Published("minimax-h3", MINIMAX_H3),
    Published("wan2.2-animate-14b", WAN_ANIMATE, {"added_kv_proj_dim": 5120}),
)
PUBLISHED: Mapping[str, Published] = MappingProxyType({one.name: one for one in _MODELS})
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {one.family.class_name: one.family for one in _MODELS}
)


def find_published(name: str) -> Published | None:
    """The model of that name in any case; None for one of Wan's. Raises ArgsError."""
    wanted = name.strip().lower().replace("_", "-")
    if wanted in PUBLISHED:
        return PUBLISHED[wanted]
    if wanted in variants.VARIANTS:
        return None
    known = (*variants.VARIANTS, *PUBLISHED)
    close = get_close_matches(wanted, known, n=1)
    hint = f"did you mean {close[0]!r}, of" if close else "use one of"
    raise ArgsError(f"Unknown variant: {name!r}: {hint} {', '.join(known)}")


def family_of(class_name: str) -> Family | None:
    """What is known of a class of diffusers; None where nothing is."""
    return FAMILIES.get(class_name)
