"""Which clone of a ComfyUI model patcher gets block swap, what is refused, and what follows it.

A callback puts what `overrides` says on clones of the clone, and another tells when the host takes
a clone off the model.
"""

import logging
from typing import Any

from ...adapters.live import describe_module
from ...selection import select
from ..runs.wish import Wish
from ..seams import host, host_dynamic
from ..seams.gguf import patches_aside
from ..seams.host_names import require, require_of
from .dynamic import DynamicOverrides
from .holding import holding_of
from .out_of_memory import survive
from .overrides import KEY, Overrides, keep_file_units, release, transformer_of, wish_of

__all__ = ["keep_file_units", "release", "swap_on_clone", "transformer_of"]


def swap_on_clone(patcher: Any, wish: Wish) -> Any:
    """A clone of `patcher` whose model runs with its blocks streamed.

    Raises ArgsError, ModelError or PlanError for what this model cannot do, HostError in a
    ComfyUI that is not as expected.
    """
    require()
    root = transformer_of(patcher)
    require_of(patcher)
    with patches_aside(root):
        select(wish.args, describe_module(root, wish.args.block_lists).layout)
    clone = _clone(patcher)
    clone.set_attachments(KEY, wish)
    _overrides_of(clone).install()
    host.follow(clone, KEY, _on_clone, _on_detach)
    survive(clone)
    return clone


def _clone(patcher: Any) -> Any:
    """A clone; where blocks cannot be taken out of this core's dynamic VRAM, one that has none."""
    if not host.is_dynamic(patcher) or host_dynamic.shares(patcher):
        return patcher.clone()
    logging.warning(
        "blockswap: this ComfyUI's dynamic VRAM, which moves every weight itself, is not one that "
        "blocks can be taken out of; the clone with block swap is made without it, so that each "
        "block has one owner. Its file is read a second time, once, and kept in RAM: Load Wan "
        "Model (Block Swap) does without"
    )
    return host.clone_without_dynamic(patcher)


def _overrides_of(clone: Any) -> Overrides:
    shared = host.is_dynamic(clone) and host_dynamic.shares(clone)
    return DynamicOverrides(clone) if shared else Overrides(clone)


def _on_clone(patcher: Any, clone: Any) -> None:
    if wish_of(clone) is not None:
        _overrides_of(clone).install()


def _on_detach(patcher: Any, unpatch_all: bool) -> None:
    """The host takes a clone off the model; with `unpatch_all` it has restored the weights."""
    holding = holding_of(patcher.model)
    if holding is not None and not unpatch_all:
        holding.taken_off(patcher)
