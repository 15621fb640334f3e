"""Measures a case's clips in a process of its own, inside a memory cgroup; prints JSON.

The disk of a shared machine changes by a half within minutes. So each forward has its own bound
beside it: the blocks' bytes read by nothing but `os.preadv`, each way once before it or behind it,
and the first block of each list alone, while its weights are in their slot.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared.raw_read import Reader
from benchmarks.shared.streamed_block import seconds_in_slot
from blockswap import BlockSwapArgs, open_transformer
from memory_group import MemoryGroup

from .case import READERS, Case

KEPT = 256 * 1024 * 1024  # more has no room under the limits


def main(case: Case) -> None:
    """`CHECKPOINT CGROUP ROUNDS` are the arguments of the command."""
    path, group, rounds = sys.argv[1:]
    print(json.dumps(measure(case, Path(path), MemoryGroup(Path(group)), int(rounds))))


def measure(case: Case, path: Path, group: MemoryGroup, rounds: int) -> dict[str, Any]:
    began = time.perf_counter()
    args = BlockSwapArgs(blocks_to_swap=1000)  # more than there are: all
    model: Any = open_transformer(case.opened(path), args, device="cpu")
    opening = time.perf_counter() - began
    plan = model.blockswap.plan
    rows: list[dict[str, Any]] = [
        {"warm_up": _forward(case, model, clip), "rounds": []} for clip in case.clips
    ]
    # Before buffers are there that only the measuring needs.
    streaming = {"peak": group.peak_bytes, **group.by_kind}
    reader = Reader(path, KEPT)
    for number in range(rounds):
        for clip, row in zip(case.clips, rows, strict=True):
            row["rounds"].append(_round(case, model, clip, reader, number))
    return {
        "opening": opening,
        "streamed": Counter(name.rpartition(".")[0] for name in plan.streamed),
        "slots": plan.slots,
        "weights_and_slots": plan.device_bytes,
        "read_bytes": reader.nbytes,
        "planned_read_bytes": plan.read_bytes_per_forward,
        "memory": streaming,
        "times_at_limit": group.times_at_limit,
        "rows": rows,
        "sentences": list(model.blockswap.measured().sentences),
    }


def _round(case: Case, model: Any, clip: Any, reader: Reader, number: int) -> dict[str, Any]:
    """The forward between raw reads, which come in the other order in every other round."""
    before, behind = READERS[:: -1 if number % 2 else 1]
    reads = {before: reader.seconds(before)}
    _forward(case, model, case.clips[0])  # begins with blocks that were read during a pause
    forward = _forward(case, model, clip)
    reads[behind] = reader.seconds(behind)
    given = case.inputs(model, clip)
    firsts = {path: model.get_submodule(path)[0] for path in case.lists}
    blocks = {path: seconds_in_slot(model, first, dict(given)) for path, first in firsts.items()}
    return {"forward": forward, "blocks": blocks, "reads": reads}


def _forward(case: Case, model: Any, clip: Any) -> float:
    print(f"a forward of {clip.words}", file=sys.stderr, flush=True)
    given = case.inputs(model, clip)
    began = time.perf_counter()
    with torch.inference_mode():
        outputs = model(**given)
    seconds = time.perf_counter() - began
    assert all(output.isfinite().all() for output in outputs)
    return seconds
