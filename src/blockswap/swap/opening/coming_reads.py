"""What opening models will read of their files, and then their first blocks, in that order."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...adapters.stored import extent_of
from ...plan import SwapPlan
from ...store.ahead import Stretch
from ...store.file_slab import Extent, file_slab
from ...stream.device import Device
from ..plan_inputs.model_bytes import extents_of
from .found_model import FoundModel


class Foreseen(NamedTuple):
    """A plan that is not carried out yet, and what its opening and first forward will read."""

    plan: SwapPlan
    reads: tuple[Stretch, ...]


def coming_reads(
    found: Sequence[FoundModel], plans: Sequence[SwapPlan], where: Device
) -> tuple[Stretch, ...]:
    """Of models that are opened one after the other, of which the first is run first."""
    reads: list[Stretch] = []
    for model, plan in zip(found, plans, strict=True):
        reads += _of_rest(model)
        for tier in ("resident", "ram"):
            reads += _of_units(model, plan, tier, where)
    reads += _of_units(found[0], plans[0], "disk", where)
    return tuple(reads)


def _of_rest(found: FoundModel) -> Iterator[Stretch]:
    stored = [t for t in found.model.live.rest if found.model.forms(t)]
    yield from _stretches(found, [extent_of(part) for part in found.model.parts(stored)])


def _of_units(found: FoundModel, plan: SwapPlan, tier: str, where: Device) -> Iterator[Stretch]:
    for unit in found.model.live.units:
        if plan.tier_of(unit.layout.name) == tier:
            yield from _stretches(found, extents_of(found.model, unit, on_host=where.on_host))


def _stretches(found: FoundModel, extents: Sequence[Extent]) -> Iterator[Stretch]:
    headers = found.checkpoint.headers
    for run in file_slab(extents).runs:
        yield Stretch(headers[run.shard].path, run.offset, run.nbytes)
