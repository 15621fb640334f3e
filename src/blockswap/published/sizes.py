"""What sizes in words come to for a clip: latents, tokens, sound, and figures of the config."""

import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

from ..errors import ArgsError
from ..plan.inputs.workload import Workload
from .record import Each, Family, Made, Size, Where

_NAME = re.compile(r"[a-z_][a-z0-9_]*")


def sizes_of(family: Family, config: Mapping[str, Any], clip: Workload) -> dict[str, int]:
    """Every size that a record may name, and the whole numbers of the config.

    `frames`, `height` and `width` are of latents, `rows` and `columns` of tokens. Raises ArgsError
    where the clip is cut for another family.
    """
    if clip.grid != family.grid:
        raise ArgsError(
            f"the clip is cut as {clip.grid.whose} has it: for {family.class_name} make it with "
            "its own grid"
        )
    height, width = clip.height // family.vae_pixels, clip.width // family.vae_pixels
    rows, columns = height // family.patch, width // family.patch
    sound, audio = family.soundtrack, 0
    if sound is not None:
        seconds = clip.frames / sound.frames_per_second
        audio = round(seconds * sound.per_second) * sound.channels
    figures = {name: value for name, value in config.items() if type(value) is int}
    return figures | {
        "batch": clip.batch,
        "frames": clip.latent_frames,
        "height": height,
        "width": width,
        "rows": rows,
        "columns": columns,
        "tokens": clip.latent_frames * rows * columns,
        "text": clip.text_tokens,
        "audio": audio,
    }


def arguments_of(family: Family, config: Mapping[str, Any], clip: Workload) -> dict[str, Any]:
    """The arguments of a forward with numbers for sizes; `config` is the whole of the model's."""
    sizes, given = sizes_of(family, config, clip), {}
    for name, wanted in family.arguments.items():
        if not isinstance(wanted, Where):
            given[name] = resolved(wanted, sizes)
        elif config.get(wanted.figure):
            given[name] = resolved(wanted.of, sizes)
    return given


def resolved(wanted: Any, sizes: Mapping[str, int]) -> Any:
    """The same nest with numbers for all sizes in words; tensors stay records."""
    if isinstance(wanted, Made):
        return replace(wanted, shape=tuple(_number(size, sizes) for size in wanted.shape))
    if isinstance(wanted, Each):
        return [resolved(wanted.of, sizes) for _ in range(sizes["batch"])]
    if isinstance(wanted, list | tuple):
        return type(wanted)(resolved(one, sizes) for one in wanted)
    return _number(wanted, sizes) if isinstance(wanted, str) else wanted


def _number(size: Size, sizes: Mapping[str, int]) -> int:
    """A sum of products of names and numbers."""
    if isinstance(size, int):
        return size
    return sum(
        prod(sizes[one] if _NAME.fullmatch(one) else int(one) for one in term.split("*"))
        for term in size.split("+")
    )
