"""What `benchmarks.disk_14b` measures, in a process of its own inside a memory cgroup.

    python -m benchmarks.disk_14b_run CHECKPOINT CGROUP ROUNDS     # prints one JSON object

For each clip, in turns so that a disturbed moment disturbs all alike: a forward with every block
streamed; its first block alone, whose weights are in their slot by then; and the blocks' bytes read
by nothing but `os.preadv` with O_DIRECT.
"""

import contextlib
import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared.raw_read import Reader
from blockswap import BlockSwapArgs, open_transformer
from memory_group import MemoryGroup

RAW_READERS = (1, 4)
KEPT = 256 * 1024 * 1024  # more has no room under the limit
BLOCK_RUNS = 3
TEXT_TOKENS = 512  # as the official pipeline pads to


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip to be made: frames, and pixels of width and height."""

    frames: int
    width: int
    height: int

    @property
    def latent(self) -> tuple[int, int, int]:
        return ((self.frames - 1) // 4 + 1, self.height // 8, self.width // 8)

    @property
    def tokens(self) -> int:
        frames, height, width = self.latent
        return frames * (height // 2) * (width // 2)


# One small frame, in which 512 tokens of text take about as long as the disk does, and a clip.
CLIPS = (Clip(1, 32, 32), Clip(5, 256, 144))


def inputs_of(clip: Clip) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 16, *clip.latent, generator=draw).bfloat16(),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, 4096, generator=draw).bfloat16(),
        "return_dict": False,
    }


def forward_seconds(model: torch.nn.Module, clip: Clip) -> float:
    print(f"a forward of {clip}", file=sys.stderr, flush=True)
    given = inputs_of(clip)
    began = time.perf_counter()
    with torch.inference_mode():
        (output,) = model(**given)
    seconds = time.perf_counter() - began
    assert output.isfinite().all()
    return seconds


class Timed(Exception):
    """Ends a forward at its first block: what was wanted is known."""


def block_seconds(model: Any, clip: Clip) -> list[float]:
    """Seconds of the first block with the inputs of a forward, while its weights are in their slot.

    The block runs behind the engine's back, so nothing is fetched or evicted meanwhile, and reads
    that are under way are waited for first.
    """
    swap, seconds = model.blockswap, []

    def run(block: torch.nn.Module, given: Any) -> None:
        for slot in swap._streamer._pool.slots:
            assert slot.job is None or slot.job.wait(60)
        before = swap.measured().counters.reads
        for _ in range(BLOCK_RUNS):
            began = time.perf_counter()
            block.forward(*given)
            seconds.append(time.perf_counter() - began)
        assert swap.measured().counters.reads == before
        raise Timed

    # After the engine's own hook: the weights hang in the block by then.
    handle = model.blocks[0].register_forward_pre_hook(run)
    try:
        with torch.inference_mode(), contextlib.suppress(Timed):
            model(**inputs_of(clip))
    finally:
        handle.remove()
    return seconds


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
