"""Checks shared by all ways in: one form of arguments, no second swap, none of a forked model."""

from collections.abc import Mapping
from typing import Any

import torch

from ...adapters.families import bare
from ...errors import ArgsError, StateError
from ...selection import BlockSwapArgs
from ..guards.open_swaps import is_swapped, overlapping
from ..running.handle import Swap


def as_args(args: BlockSwapArgs | Mapping[str, Any] | None) -> BlockSwapArgs:
    """The caller's arguments, whichever way they were given; None means automatic."""
    if args is None:
        return BlockSwapArgs()
    return args if isinstance(args, BlockSwapArgs) else BlockSwapArgs.from_mapping(args)


def refuse_swapped(model: torch.nn.Module) -> None:
    """Raises StateError when another swap of this model, or of a part of it, is open."""
    label = type(bare(model)).__name__
    swap = vars(bare(model)).get("blockswap")
    if isinstance(swap, Swap) and swap.forked:
        raise StateError(
            f"this {label} was swapped in the process that this one was "
            "forked from, and only that one can give it back: load the model here"
        )
    if is_swapped(model):
        raise StateError(f"this {label} is swapped already: close that swap first")
    other = overlapping(bare(model))
    if other is not None:
        raise StateError(
            f"this {label} was to be swapped, and it shares blocks with a {type(other).__name__} "
            "that is swapped already: close that swap first, or swap one of the two"
        )


def refuse_dtype(dtype: object) -> None:
    """Raises ArgsError for a dtype that weights do not compute in; None is the file's own."""
    if dtype is None:
        return
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1:
        return
    raise ArgsError(
        f"dtype={dtype!r} was asked, and weights compute in floating point of 16 bits or "
        "more: give a torch dtype such as torch.bfloat16, or none for the file's own"
    )
