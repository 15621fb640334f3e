"""A run in a process of its own that limits its own memory cgroup first; prints what it took.

python bounded_run.py FOLDER PLACE CGROUP ROOM
"""

import json
import sys
from pathlib import Path

from whole import request_for

from blockswap.generate.run import make_videos, prepare


def main(folder: Path, place: Path, group: Path, room: int) -> None:
    """`room`: bytes beyond what the process has when nothing is read yet."""
    output = place / "clip.mp4"
    _, free = prepare(folder, request_for("t2v", place), output, device="cpu")
    budget = min(phase.host_bytes for phase in free.phases) + room
    (group / "memory.limit_in_bytes").write_text(str(budget))
    request = request_for("t2v", place, ram_budget=budget)
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
    }
    (place / "frames").write_bytes(frames[0])
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
