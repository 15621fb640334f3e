"""Tells the comparison with FSDP2 as a table."""

from collections.abc import Sequence

from benchmarks.fsdp.what import Row
from benchmarks.shared import results
from benchmarks.shared.machine import machine
from benchmarks.shared.markdown import bullet_list, document, table
from blockswap.units import format_bytes

NAMES = {"fsdp": "FSDP2, `fully_shard` of each block, CPU offload", "ours": "blockswap, `mesh=`"}


def write(rows: Sequence[Row]) -> None:
    """Writes JSON and Markdown."""
    data = {"conditions": machine(), "rows": [row.as_json() for row in rows]}
    results.write("fsdp", data, report(rows))


def report(rows: Sequence[Row]) -> str:
    """The whole result as Markdown."""
    lines = [
        f"| {NAMES[row.schedule]} | {row.ranks} | {format_bytes(row.gathered)} | "
        f"{format_bytes(row.held)} | {'yes' if row.equal else 'no'} |"
        for row in rows
    ]
    head = "| schedule | ranks | gathered, a rank and forward | host memory, all | equal bits |"
    model = f"24 blocks, {format_bytes(rows[0].weights)}, fp32"
    return document(
        [
            "# Beside FSDP2",
            bullet_list(machine() | {"model": model}),
            "Processes over gloo on the CPU: what FSDP2 unshards lies in host memory there, and "
            "would be on the device elsewhere; our blocks are used where they lie. On an "
            "accelerator FSDP2 (by its documentation) and ours in parts both copy 1/N of a block "
            "over each link and gather the rest. Memory is how much the proportional bytes of all "
            "processes have grown since before the model was there; each had built all of it.",
            table(head, lines),
        ]
    )
