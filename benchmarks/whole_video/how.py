"""Makes the video, in a process of its own inside a memory cgroup; prints one JSON object.

python -m benchmarks.whole_video.how FOLDER CGROUP OUTPUT
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.whole_video.what import files, request
from blockswap.generate.run import make_videos, prepare
from memory_group import MemoryGroup


def measure(folder: Path, group: MemoryGroup, output: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["BLOCKSWAP_CACHE"] = cache  # no prompt is kept from an earlier run
        job, plan = prepare(files(folder), request(), output, device="cpu")
        ends: dict[str, float] = {}
        found: list[Any] = []
        began = time.perf_counter()

        def progress(phase: str, _done: int, _total: int) -> None:
            ends[phase] = round(time.perf_counter() - began, 1)

        made = make_videos(
            job, plan, progress=progress, on_frames=lambda _, frames: found.append(frames)
        )
    (frames,) = found
    return {
        "verdict": plan.verdict,
        "planned_host_bytes": plan.host_peak_bytes,
        "process_peak_bytes": made.host_peak_bytes,
        "planned": {phase.name: phase.host_bytes for phase in plan.phases},
        "phases_ended_after_seconds": ends,
        "memory": {"peak": group.peak_bytes, **group.by_kind},
        "times_at_limit": group.times_at_limit,
        "frames": list(frames.shape),
        "spread": float(frames.std()),
        "sha256": hashlib.sha256(frames.tobytes()).hexdigest(),
        "video_bytes": output.stat().st_size,
    }


if __name__ == "__main__":
    told = measure(Path(sys.argv[1]), MemoryGroup(Path(sys.argv[2])), Path(sys.argv[3]))
    print(json.dumps(told))
