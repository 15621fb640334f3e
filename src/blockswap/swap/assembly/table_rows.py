"""How lookup tables are hung in a model so that they are read by rows, and what is told of them."""

from collections.abc import Sequence

import torch

from ...adapters.live import LiveTensor
from ...stream.model.lookup_tables import Lookups, LookupTable, RowSource
from ...units import format_bytes
from .parts import Parts


def hang_tables(parts: Parts, tables: Sequence[LiveTensor], sources: Sequence[RowSource]) -> None:
    """Puts a table without memory in every place of each; the originals come back on undo."""
    recorder, device = parts.recorder, parts.device.torch_device

    def note(rows: int, nbytes: int) -> None:
        counters = recorder.counters
        counters.looked_up_rows += rows
        counters.looked_up_bytes += nbytes

    for table, source in zip(tables, sources, strict=True):
        original = table.tensor
        lookups = Lookups(table.places[0].label, source, device, note)
        standing = LookupTable(original.shape, original.dtype, device, lookups)
        parts.undo.callback(_take_down, table, standing)
        for place in table.places:
            place.table[place.name] = standing


def table_sentences(live_tables: Sequence[LiveTensor]) -> tuple[str, ...]:
    """What was read of each table so far."""
    said = []
    for table in live_tables:
        place = table.places[0]
        standing = place.table.get(place.name)
        if not isinstance(standing, LookupTable):
            continue
        lookups = standing.blockswap_lookups
        said.append(
            f"{place.label} ({format_bytes(table.spec.nbytes)}) is read by rows: {lookups.rows:,} "
            f"rows, {format_bytes(lookups.fetched_bytes)} so far"
        )
        if lookups.whole_uses:
            said.append(
                f"{place.label} was fetched whole {len(lookups.whole_uses)} times for "
                f"{', '.join(sorted(set(lookups.whole_uses)))}, which is no lookup"
            )
    return tuple(said)


def _take_down(table: LiveTensor, standing: torch.Tensor) -> None:
    for place in table.places:
        if place.table.get(place.name) is standing:
            place.table[place.name] = table.tensor
