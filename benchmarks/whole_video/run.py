"""Runs the benchmark: the files, the child that has 4 GB, and what it says of the budget."""

import json
from collections.abc import Sequence

from benchmarks.shared.bounded_memory import large_file, refuse_without_limits, told_within
from benchmarks.shared.options import folder_of
from benchmarks.whole_video.what import DISK_BYTES, LIMIT, RAM_BUDGET, write


def main(arguments: Sequence[str]) -> int:
    """Writes, measures, prints; returns 1 where the process took more than its budget."""
    folder = folder_of("benchmarks.whole_video", arguments)
    refuse_without_limits(LIMIT)
    with large_file(folder, "files", DISK_BYTES, write) as path:
        output = path.with_name("video.mp4")
        try:
            told = told_within(LIMIT, "benchmarks.whole_video.how", path, output)
        finally:
            output.unlink(missing_ok=True)
        within = told["process_peak_bytes"] <= RAM_BUDGET
        print(json.dumps({"within_budget": within, **told}, indent=1))
    return 0 if within else 1
