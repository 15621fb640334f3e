"""Which tensors of a model are streamed (those of one block alone); which models are not loaded.

Streamed are the parameters that belong to one unit alone. Everything else is *rest* and stays on
the compute device: parameters outside the units, tensors shared between modules, and all buffers
(a buffer may change during a forward, and what changes cannot be fetched again from a store). Of
the rest, large lookup tables are *tables*: a forward reads the rows that it asks for.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch

from ..errors import ModelError
from ..layout.values import ModelLayout, TensorSpec, UnitLayout
from ..store.leaves import leaf_tensors, named_class, spec_of
from ..store.places import Place
from .diffusers_seam import mapped_places
from .families import UnitModule, bare, unit_modules
from .lookup import is_lookup_table

_SELF_QUANTISING = ("bitsandbytes",)


@dataclass(frozen=True, slots=True)
class LiveTensor:
    """A tensor of a live module with every place in which it hangs."""

    spec: TensorSpec
    tensor: torch.Tensor
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class LiveUnit:
    """A unit of a live module; `tensors` are in the order of `layout.tensors`."""

    layout: UnitLayout
    module: torch.nn.Module
    tensors: tuple[LiveTensor, ...]


@dataclass(frozen=True, slots=True)
class LiveModel:
    """A live module as the engine sees it."""

    root: torch.nn.Module
    layout: ModelLayout
    units: tuple[LiveUnit, ...]
    rest: tuple[LiveTensor, ...]
    tables: tuple[LiveTensor, ...] = ()  # of the rest, what is read by rows

    @property
    def parameters_outside(self) -> tuple[LiveTensor, ...]:
        """Those of the parameters that no unit has, tables included."""
        outside = (*self.rest, *self.tables)
        return tuple(t for t in outside if all(place.is_parameter for place in t.places))

    def as_it_hangs(self) -> "LiveModel":
        """The same with buffers that were assigned anew since it was described."""
        return replace(self, rest=tuple(map(_as_it_hangs, self.rest)))

    def hang(self) -> None:
        """Hangs the blocks' tensors in their places: another description's may hang there.

        What hangs there with data stays: weights that ranks share.
        """
        for tensor in (tensor for unit in self.units for tensor in unit.tensors):
            for place in tensor.places:
                hanging = place.table[place.name]
                if hanging is None or hanging.is_meta:
                    place.table[place.name] = tensor.tensor


def _as_it_hangs(tensor: LiveTensor) -> LiveTensor:
    place = tensor.places[0]
    now = place.table.get(place.name)
    return tensor if place.is_parameter or now is None else replace(tensor, tensor=now)


def describe_module(model: torch.nn.Module, block_lists: Sequence[str] = ()) -> LiveModel:
    """The layout of a live model; `block_lists` as in `unit_modules`. Raises ModelError."""
    root = bare(model)
    found = unit_modules(root, block_lists)
    owned = _tensors_by_owner(root, found)
    units = tuple(
        _live_unit(unit, owned.pop(number)) for number, unit in enumerate(found) if number in owned
    )
    outside = tuple(_live(places[0].label, places) for places in owned.get(-1, ()))
    tables = tuple(tensor for tensor in outside if is_lookup_table(tensor.tensor, tensor.places))
    rest = tuple(tensor for tensor in outside if not any(tensor is table for table in tables))
    layout = ModelLayout(
        label=type(root).__name__,
        units=tuple(unit.layout for unit in units),
        rest=tuple(tensor.spec for tensor in rest),
    )
    return LiveModel(root=root, layout=layout, units=units, rest=rest, tables=tables)


def places_of(model: torch.nn.Module) -> Iterator[Place]:
    """Every place in which a parameter or buffer hangs, duplicates of shared tensors included."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for table, is_parameter in ((module._parameters, True), (module._buffers, False)):
            for name, tensor in table.items():
                if tensor is not None:
                    yield Place(module, name, is_parameter, prefix + name)


def _tensors_by_owner(
    root: torch.nn.Module, units: Sequence[UnitModule]
) -> dict[int, list[tuple[Place, ...]]]:
    """Groups of places (one group a tensor) by the number of the unit that owns it; -1 is rest."""
    unit_of = _units_by_module(root, units)
    groups: dict[int, list[Place]] = {}
    for place in places_of(root):
        groups.setdefault(id(place.table[place.name]), []).append(place)
    memory = _users_of_memory(groups, unit_of)
    owned: dict[int, list[tuple[Place, ...]]] = {n: [] for n in range(len(units))}
    owned[-1] = []
    for group in groups.values():
        tensor = group[0].table[group[0].name]
        owners = set().union(*(memory[key] for key in _memory_keys(tensor)))
        alone = len(owners) == 1 and all(place.is_parameter for place in group)
        owned[owners.pop() if alone else -1].append(tuple(group))
    return owned


def _units_by_module(
    root: torch.nn.Module, units: Sequence[UnitModule]
) -> dict[torch.nn.Module, set[int]]:
    """The units that each module hangs in, which may be several; -1 is a place outside of all."""
    numbers = {unit.module: number for number, unit in enumerate(units)}
    found: dict[torch.nn.Module, set[int]] = {}
    left = [(root, -1)]
    while left:
        module, around = left.pop()
        number = numbers.get(module, around)
        if number not in found.setdefault(module, set()):
            found[module].add(number)
            left.extend((child, number) for child in module.children())
    return found


def _users_of_memory(
    groups: dict[int, list[Place]], unit_of: dict[torch.nn.Module, set[int]]
) -> dict[tuple[int, int], set[int]]:
    """Which units use each piece of memory: different tensors may be views of the same bytes."""
    users: dict[tuple[int, int], set[int]] = {}
    for group in groups.values():
        owners = set().union(*(unit_of[place.module] for place in group))
        for key in _memory_keys(group[0].table[group[0].name]):
            users.setdefault(key, set()).update(owners)
    return users


def _memory_keys(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """What identifies the memory of each leaf: its first byte, or its own identity without one."""
    keys = []
    for _, leaf in leaf_tensors(tensor):
        strided = leaf.layout is torch.strided
        empty = not strided or leaf.device.type == "meta" or leaf.numel() == 0
        keys.append((0, id(leaf)) if empty else (1, leaf.data_ptr()))
    return keys or [(0, id(tensor))]


def _live_unit(unit: UnitModule, groups: list[tuple[Place, ...]]) -> LiveUnit:
    prefix = f"{unit.name}."
    tensors = tuple(_live(group[0].label.removeprefix(prefix), group) for group in groups)
    layout = UnitLayout(unit.name, unit.kind, unit.index, tuple(t.spec for t in tensors))
    return LiveUnit(layout=layout, module=unit.module, tensors=tensors)


def _live(name: str, places: tuple[Place, ...]) -> LiveTensor:
    tensor = places[0].table[places[0].name]
    return LiveTensor(
        spec=spec_of(name, tensor, label=places[0].label), tensor=tensor, places=places
    )


def refuse_self_quantising(model: LiveModel) -> None:
    """Raises ModelError for weights that quantise themselves when they are moved to a device.

    What would arrive in a slot are the numbers from before.
    """
    for unit in model.units:
        for live in unit.tensors:
            if type(live.tensor).__module__.partition(".")[0] in _SELF_QUANTISING:
                name = f"{live.places[0].label} is a {named_class(live.tensor)}"
                raise ModelError(
                    f"{name}, which quantises itself when it is moved to a device, and streamed "
                    "weights arrive as they are: load the model in bf16, as GGUF or quantised by "
                    "torchao"
                )


def refuse_unloaded(model: LiveModel, units: Collection[str] | None = None) -> None:
    """Raises ModelError unless the tensors have data, and those of the units in host memory.

    `units` names the units that matter; None means all.
    """
    instead = _loaded_otherwise(model.root)
    for live in (*model.rest, *model.tables):
        if live.tensor.device.type == "meta":
            _refuse_meta(live.places[0].label, instead)
    for unit in model.units:
        if units is not None and unit.layout.name not in units:
            continue
        for live in unit.tensors:
            where = f"{unit.layout.name}.{live.spec.name}"
            for _, leaf in leaf_tensors(live.tensor):
                if leaf.device.type == "meta":
                    _refuse_meta(where, instead)
                if leaf.device.type != "cpu":
                    moved = "call model.to('cpu') before swapping its blocks"
                    raise ModelError(
                        f"{where} is on {leaf.device}, and weights are never copied back from a "
                        f"device: {instead or moved}"
                    )


def _refuse_meta(label: str, instead: str) -> NoReturn:
    known = "load the model's weights first, or open its checkpoint with open_transformer"
    raise ModelError(f"{label} has no data (it is on the meta device): {instead or known}")


def _loaded_otherwise(model: torch.nn.Module) -> str:
    """What helps where a `device_map` keeps a model's parts in several places, else nothing.

    Such a model cannot be moved to one place: its library refuses.
    """
    places = mapped_places(vars(model))
    if len(places) < 2:
        return ""
    return (
        f"the model was loaded with a device_map that keeps its parts on {', '.join(places)}: load "
        "it without one, or with device_map='cpu'"
    )
