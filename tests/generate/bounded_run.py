"""A run in a process of its own that limits its own memory cgroup first; prints what it took.

python bounded_run.py FOLDER PLACE CGROUP KIND
"""

import json
import sys
from pathlib import Path

from whole import request_for

from blockswap.generate.run import make_videos, prepare

SHARE = 90  # percent of the transformers' bytes that there is room for


def main(folder: Path, place: Path, group: Path, kind: str) -> None:
    """Beyond what the process has when nothing is read yet, most of the transformers' bytes."""
    output, kind = place / "clip.mp4", kind.partition(".")[0]
    first, free = prepare(folder, request_for(kind, place), output, device="cpu")
    transformers = sum(part.weight_bytes for part in first.parts.transformers)
    budget = min(phase.host_bytes for phase in free.phases) + transformers * SHARE // 100
    others = [phase.host_bytes for phase in free.phases if phase.name != "sample"]
    budget = max(budget, *(needed + 10 * 2**20 for needed in others))  # the first plan takes some
    (group / "memory.limit_in_bytes").write_text(str(budget))
    request = request_for(kind, place, ram_budget=budget)
    job, plan = prepare(folder, request, output, device="cpu")
    frames: list[bytes] = []
    made = make_videos(job, plan, on_frames=lambda _, found: frames.append(found.tobytes()))
    told = {
        "budget": budget,
        "planned": plan.host_peak_bytes,
        "free": free.host_peak_bytes,
        "measured": made.host_peak_bytes,
        "streamed": len(plan.blocks.streamed),
        "written": output.stat().st_size,
        "phases": {phase.name: phase.host_bytes for phase in plan.phases},
    }
    (place / "frames").write_bytes(frames[0])
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
