"""Measures the MiniMax-H3 benchmark's clips, in a process of its own inside a memory cgroup.

    python -m benchmarks.disk_h3.how CHECKPOINT CGROUP ROUNDS     # prints one JSON object

In turns, so that a disturbed moment disturbs all alike: a forward with every block streamed; the
first block of each list alone; and the blocks' bytes read by nothing but `os.preadv`.
"""

import itertools
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.disk_h3.what import CLIPS, LISTS, MODEL, Clip
from benchmarks.shared.raw_read import Reader
from benchmarks.shared.streamed_block import seconds_in_slot
from blockswap import BlockSwapArgs, open_transformer
from blockswap.published import Made, arguments_of
from memory_group import MemoryGroup

RAW_READERS = (1, 4)
KEPT = 256 * 1024 * 1024


def inputs_for(clip: Clip, config: Any) -> dict[str, Any]:
    """Random latents and text, and the layout of one packed sequence: text, sound, frames."""
    draw = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {}
    for name, wanted in arguments_of(MODEL.family, config, clip.workload).items():
        assert isinstance(wanted, Made)
        dtype = getattr(torch, wanted.dtype or "bfloat16")
        shape = [int(size) for size in wanted.shape]
        given[name] = torch.rand(shape, generator=draw).to(dtype)
    text, sound, frames = (
        given[name].shape[0] for name in ("text_indices", "audio_indices", "video_indices")
    )
    rows = torch.arange(text + sound + frames)
    given["text_indices"], given["audio_indices"], given["video_indices"] = rows.split(
        [text, sound, frames]
    )
    given["token_tags"] = torch.tensor([1] * text + [2] * sound + [0] * frames)
    given["position_ids"][:, 0] = rows
    return {**given, "return_dict": False}


def forward_seconds(model: Any, clip: Clip) -> float:
    print(f"a forward of {clip}", file=sys.stderr, flush=True)
    given = inputs_for(clip, model.config)
    began = time.perf_counter()
    with torch.inference_mode():
        outputs = model(**given)
    seconds = time.perf_counter() - began
    assert all(output.isfinite().all() for output in outputs)
    return seconds


def block_seconds(model: Any, clip: Clip) -> dict[str, list[float]]:
    given = inputs_for(clip, model.config)
    return {path: seconds_in_slot(model, model.get_submodule(path)[0], given) for path in LISTS}


def measure(path: str, group: MemoryGroup, rounds: int) -> dict[str, Any]:
    began = time.perf_counter()
    folder = Path(path).parent
    model: Any = open_transformer(folder, BlockSwapArgs(blocks_to_swap=100), device="cpu")
    opening = time.perf_counter() - began
    plan = model.blockswap.plan
    warm_up = [forward_seconds(model, clip) for clip in CLIPS]
    # Before buffers are there that only the measuring needs.
    streaming = {"peak": group.peak_bytes, **group.by_kind}
    reader = Reader(Path(path), KEPT)
    raw: dict[int, list[float]] = {readers: [] for readers in RAW_READERS}
    turns = itertools.cycle(RAW_READERS)
    rows: list[dict[str, Any]] = [
        {"warm_up": seconds, "forwards": [], "blocks": {path: [] for path in LISTS}}
        for seconds in warm_up
    ]
    for _ in range(rounds):
        for clip, row in zip(CLIPS, rows, strict=True):
            forward_seconds(model, CLIPS[0])  # begins with blocks that were read during a pause
            row["forwards"].append(forward_seconds(model, clip))
            for name, seconds in block_seconds(model, clip).items():
                row["blocks"][name].extend(seconds)
            readers = next(turns)
            raw[readers].append(reader.seconds(readers))
    return {
        "opening": opening,
        "streamed": Counter(name.rpartition(".")[0] for name in plan.streamed),
        "slots": plan.slots,
        "weights_and_slots": plan.device_bytes,
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
