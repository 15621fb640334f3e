"""Putting units where the plan wants them; every step says how it is undone.

Each function registers its undoing before it changes anything, so that a failure (or Ctrl-C) in
the middle of opening leaves the model as it was found, and closing is the same undoing.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from blockswap.adapters.live import LiveTensor
from blockswap.layout.slab import pack
from blockswap.store.leaves import leaf_tensors, rebuild, view_leaf
from blockswap.stream.binding import Binding, as_value
from blockswap.stream.device import Device
from blockswap.swap.facts import leaves_of


def binding_of(tensors: Sequence[LiveTensor]) -> Binding:
    """The places of some tensors, with the tensors found there as idle ones."""
    return Binding([t.places for t in tensors], [t.tensor for t in tensors])


def values_from(
    tensors: Sequence[LiveTensor], leaves: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Tensors to hang in a model, rebuilt over `leaves` (all leaves of `tensors`, in order)."""
    values, at = [], 0
    for live in tensors:
        count = len(live.spec.leaves)
        value = rebuild(live.spec, leaves[at : at + count])
        values.append(as_value(value, is_parameter=live.places[0].is_parameter))
        at += count
    return tuple(values)


def slab_views(tensors: Sequence[LiveTensor], slab: torch.Tensor) -> list[torch.Tensor]:
    """Views of `slab` for all leaves of `tensors`, laid out one behind the other."""
    leaves = leaves_of(t.spec for t in tensors)
    offsets = pack(leaves).offsets
    return [view_leaf(slab, at, leaf) for at, leaf in zip(offsets, leaves, strict=True)]


def hang_on_device(
    undo: ExitStack,
    tensors: Sequence[LiveTensor],
    sources: Sequence[torch.Tensor],
    device: Device,
) -> None:
    """Copies `sources` (all leaves of `tensors`) to one slab on the device and hangs it there.

    The tensors that hung there come back on undo. Buffers that a forward changed meanwhile are
    written back to them; parameters do not change.
    """
    leaves = leaves_of(t.spec for t in tensors)
    views = slab_views(tensors, device.allocate(pack(leaves).nbytes))
    for view, source in zip(views, sources, strict=True):
        view.copy_(source)
    values = values_from(tensors, views)
    binding = binding_of(tensors)
    undo.callback(binding.unbind)
    buffers = [
        (live.tensor, value, value._version)
        for live, value in zip(tensors, values, strict=True)
        if not live.places[0].is_parameter
    ]
    undo.callback(_write_back, buffers)
    binding.bind(values)


def _write_back(buffers: Sequence[tuple[torch.Tensor, torch.Tensor, int]]) -> None:
    for original, value, version in buffers:
        if value._version != version and original.device.type != "meta":
            original.copy_(value)


def host_leaves(tensors: Sequence[LiveTensor]) -> list[torch.Tensor]:
    """The leaves of live tensors as they lie in host memory."""
    return [leaf.detach() for live in tensors for _, leaf in leaf_tensors(live.tensor)]
