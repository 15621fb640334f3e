"""Measures the 14B benchmark's clips, in a process of its own inside a memory cgroup.

    python -m benchmarks.disk_14b.how CHECKPOINT CGROUP ROUNDS     # prints one JSON object

For each clip, in turns so that a disturbed moment disturbs all alike: a forward with every block
streamed; its first block alone, whose weights are in their slot by then; and the blocks' bytes read
by nothing but `os.preadv` with O_DIRECT.
"""

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.disk_14b.what import CLIPS, Clip
from benchmarks.shared.forward import inputs_of, timed
from benchmarks.shared.raw_read import Reader
from benchmarks.shared.streamed_block import seconds_in_slot
from blockswap import BlockSwapArgs, open_transformer
from memory_group import MemoryGroup

RAW_READERS = (1, 4)
KEPT = 256 * 1024 * 1024  # more has no room under the limit
TEXT_TOKENS = 512  # as the official pipeline pads to


def inputs_for(clip: Clip) -> dict[str, Any]:
    return inputs_of(clip.latent, TEXT_TOKENS, torch.bfloat16, seed=0)


def forward_seconds(model: torch.nn.Module, clip: Clip) -> float:
    print(f"a forward of {clip}", file=sys.stderr, flush=True)
    seconds, output = timed(model, inputs_for(clip))
    assert output.isfinite().all()
    return seconds


def block_seconds(model: Any, clip: Clip) -> list[float]:
    return seconds_in_slot(model, model.blocks[0], inputs_for(clip))


def measure(path: str, group: MemoryGroup, rounds: int) -> dict[str, Any]:
    began = time.perf_counter()
    model: Any = open_transformer(path, BlockSwapArgs(blocks_to_swap=40), device="cpu")
    opening = time.perf_counter() - began
    plan = model.blockswap.plan
    warm_up = [forward_seconds(model, clip) for clip in CLIPS]
    # Before buffers are there that only the measuring needs.
    streaming = {"peak": group.peak_bytes, **group.by_kind}
    reader = Reader(Path(path), KEPT)
    raw: dict[int, list[float]] = {readers: [] for readers in RAW_READERS}
    turns = itertools.cycle(RAW_READERS)
    rows: list[dict[str, Any]] = [
        {"warm_up": seconds, "forwards": [], "blocks": []} for seconds in warm_up
    ]
    for _ in range(rounds):
        for clip, row in zip(CLIPS, rows, strict=True):
            forward_seconds(model, CLIPS[0])  # begins with blocks that were read during a pause
            row["forwards"].append(forward_seconds(model, clip))
            row["blocks"].extend(block_seconds(model, clip))
            readers = next(turns)
            raw[readers].append(reader.seconds(readers))
    return {
        "opening": opening,
        "streamed": len(plan.streamed),
        "slots": plan.slots,
        "read_bytes": reader.nbytes,
        "planned_read_bytes": plan.read_bytes_per_forward,
        "memory": streaming,
        "times_at_limit": group.times_at_limit,
        "raw": raw,
        "rows": rows,
        "sentences": list(model.blockswap.measured().sentences),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], MemoryGroup(Path(sys.argv[2])), int(sys.argv[3]))))
