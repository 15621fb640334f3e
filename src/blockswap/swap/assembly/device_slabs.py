"""How weights are put on the device in slabs, and which changes are copied back on undo.

Each function registers its undoing before it changes anything, so that a failure (or Ctrl-C) in
the middle of opening leaves the model as it was found, and closing is the same undoing.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from ...adapters.adapted import InMemory
from ...adapters.live import LiveTensor
from ...decode.unit_decoding import decoded_once
from ...layout.slab import pack
from ...layout.values import Recipe
from ...store.leaves import leaf_tensors, rebuild, view_leaf
from ...store.traces import Traces
from ...stream.device import Device
from ...stream.units.binding import as_value
from ...stream.units.resident import Resident
from ..plan_inputs.model_bytes import leaves_of


def values_from(
    tensors: Sequence[LiveTensor], leaves: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Tensors to hang in a model, rebuilt over `leaves` (all leaves of `tensors`, in order)."""
    values, at = [], 0
    for live in tensors:
        count = len(live.spec.leaves)
        # `.data`: views of one slab share a version counter, and each value needs its own.
        parts = [leaf.data for leaf in leaves[at : at + count]]
        # A tensor subclass made outside of inference mode cannot be detached inside of it.
        with torch.inference_mode(live.spec.recipe is not None and live.tensor.is_inference()):
            value = rebuild(live.spec, parts)
        value = as_value(value, is_parameter=live.places[0].is_parameter)
        if not isinstance(live.spec.recipe, Recipe):
            vars(value).update(vars(live.tensor))  # what others noted on the tensor stays noted
        values.append(value)
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
    allocate: Callable[[int], torch.Tensor],
    *,
    copies: bool = True,
) -> None:
    """Copies `sources` (all leaves of `tensors`) to one slab of `allocate` and hangs it there.

    The tensors that hung there come back on undo, buffers with what a forward wrote to them
    meanwhile. What other code hung in their place meanwhile stays. Without `copies` another
    process does that, which has the same memory.
    """
    leaves = leaves_of(t.spec for t in tensors)
    views = slab_views(tensors, allocate(pack(leaves).nbytes))
    for view, source in zip(views, sources, strict=True):
        if copies:
            view.copy_(source)
    values = values_from(tensors, views)
    for live, value in zip(tensors, values, strict=True):
        undo.callback(_take_down, live, value, Traces([value]))
        for place in live.places:
            place.table[place.name] = value


def make_resident(
    tensors: Sequence[LiveTensor],
    device: Device,
    allocate: Callable[[int], torch.Tensor] | None = None,
) -> Resident:
    """A slab on the device for a unit's tensors, which hangs in the model when it is told to.

    What hangs in the model now comes back when it is taken down. Raises torch.OutOfMemoryError.
    `allocate`: where the slab is from, if not the device itself.
    """
    slab = (allocate or device.allocate)(pack(leaves_of(t.spec for t in tensors)).nbytes)
    values = values_from(tensors, slab_views(tensors, slab))
    entries = [
        (place, value, place.table[place.name])
        for live, value in zip(tensors, values, strict=True)
        for place in live.places
    ]
    return Resident(device, slab, entries)


def hang_unit(
    undo: ExitStack,
    tensors: Sequence[LiveTensor],
    sources: Sequence[torch.Tensor],
    device: Device,
    allocate: Callable[[int], torch.Tensor] | None = None,
    *,
    copies: bool = True,
) -> Resident:
    """Copies `sources` (all leaves of a unit) to a slab on the device and hangs it there.

    `allocate` as in `make_resident`, `copies` as in `hang_on_device`.
    """
    resident = make_resident(tensors, device, allocate)
    undo.callback(resident.take_down)
    resident.load(sources, copies=copies)
    resident.hang()
    return resident


def _take_down(live: LiveTensor, value: torch.Tensor, traces: Traces) -> None:
    """Hangs the original back, wherever our tensor still hangs."""
    original = live.tensor
    written = traces.changed() and original.device.type != "meta"
    if written and live.places[0].is_parameter:
        warnings.warn(
            f"{live.places[0].label} was changed on the device while the model was swapped, and "
            "weights are not copied back: the change is lost, make it before swapping",
            stacklevel=2,
        )
    elif written and original.shape == value.shape:
        original.copy_(value)
    for place in live.places:
        hanging = place.table.get(place.name)
        if hanging is value:
            place.table[place.name] = original
        elif hanging is not None and not place.is_parameter:
            place.table[place.name] = hanging.to(original.device)  # a buffer assigned anew


def host_leaves(tensors: Sequence[LiveTensor]) -> list[torch.Tensor]:
    """The leaves of live tensors as they lie in host memory."""
    return [leaf.detach() for live in tensors for _, leaf in leaf_tensors(live.tensor)]


def merged_leaves(
    tensors: Sequence[LiveTensor], loras: InMemory, device: torch.device
) -> list[torch.Tensor]:
    """The leaves of live tensors in host memory; those that a LoRA changes, merged on `device`."""
    leaves: list[torch.Tensor] = []
    for live in tensors:
        own, form = host_leaves([live]), loras.form(live)
        if form is not None:
            own = [decoded_once(form, [*own, *loras.factors_of(live)], device)]
        leaves += own
    return leaves
