"""Blocks from the disk in bounded memory: ours and others', against the raw read and all in RAM.

    python -m benchmarks.disk_tier                # one to two hours; root, 45 GB of disk, quiet
    python -m benchmarks.disk_tier --quick        # a small model, printed only
    python -m benchmarks.disk_tier --models "30 blocks"   # anew; the other rows are kept

Every method runs in a process of its own under a memory cgroup in which the page cache counts;
one works at a time, in interleaved rounds. Writes benchmarks/results/disk_tier.*
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.disk.child import THREADS
from benchmarks.disk.folder import Folder, Model, write_model
from benchmarks.disk.methods import METHODS
from benchmarks.disk.report import markdown, summary_table, write_chart
from benchmarks.disk.rounds import run_rows
from benchmarks.disk.rows import OURS, Row, misses
from benchmarks.disk.workload import Clip
from benchmarks.shared.results import RESULTS
from memory_group import python, unavailable_reason

MB = 10**6


@dataclass(frozen=True, slots=True)
class Case:
    """A model, the memory its methods may use, and the clips it is run with."""

    model: Model
    limit_bytes: int
    clips: tuple[Clip, ...]


DISK_BOUND = Clip(tokens=1, text=4)
CASES = (
    Case(Model(10, "bfloat16"), 1000 * MB, (DISK_BOUND, Clip(64, 64), Clip(400, 512))),
    Case(Model(10, "float32"), 1400 * MB, (DISK_BOUND, Clip(64, 64), Clip(400, 512))),
    Case(Model(30, "float32"), 1400 * MB, (DISK_BOUND,)),
    Case(Model(30, "bfloat16"), 1000 * MB, (DISK_BOUND, Clip(390, 512))),
    Case(Model(10, "bfloat16"), 1000 * MB, (Clip(2000, 512),)),
)
QUICK = (Case(Model(4, "bfloat16"), 800 * MB, (DISK_BOUND, Clip(64, 64))),)


def measure(cases: Sequence[Case], folder: Path, only: str) -> Iterator[list[Row]]:
    """Writes each model, lets the methods prepare, measures, and removes it again.

    Yields all rows so far after each case: a run that is ended early has told what it found.
    """
    rows: list[Row] = []
    for case in cases:
        root = folder / case.model.name.replace(", ", "-").replace(" ", "-")
        try:
            files = write_model(case.model, root)
            names = [name for name in METHODS if _wanted(name, only)]
            for name in names:
                _prepare(name, files)
            rows += run_rows(case.model, files, case.clips, case.limit_bytes, names)
            yield rows
        finally:
            shutil.rmtree(root, ignore_errors=True)


def _wanted(name: str, only: str) -> bool:
    return not METHODS[name].limited or name == OURS or only in name


def _prepare(name: str, files: Folder) -> None:
    command = python("-m", "benchmarks.disk.child", "prepare", name, files.root)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name} could not be prepared: {done.stderr[-300:]}", file=sys.stderr)


def kept_rows(models: str) -> list[Row]:
    """Rows of the last results whose model has not `models` in its name; none if that is empty."""
    results = RESULTS / "disk_tier.json"
    if not models or not results.exists():
        return []
    rows = map(Row.from_json, json.loads(results.read_text())["rows"])
    return [row for row in rows if models not in row.model.name]


def names_of(cases: Sequence[Case]) -> str:
    """The models, each once, for a sentence."""
    return "; ".join(dict.fromkeys(case.model.name for case in cases))


def in_order(rows: Sequence[Row]) -> list[Row]:
    """As in `CASES`, whenever they were measured."""
    order = [(case.model, clip) for case in CASES for clip in case.clips]
    return sorted(rows, key=lambda row: order.index((row.model, row.clip)))


def write(rows: Sequence[Row]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "disk_tier.md").write_text(markdown(rows, THREADS))
    data = {"rows": [row.as_json() for row in rows]}
    (RESULTS / "disk_tier.json").write_text(json.dumps(data, indent=1) + "\n")
    write_chart(rows, RESULTS / "disk_tier.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, writes or prints; returns 1 when ours misses a target in any row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a small model, printed only")
    parser.add_argument(
        "--models",
        default="",
        help="those with this in their name anew; other rows, of this machine, are kept",
    )
    parser.add_argument("--only", default="", help="peers with this in their name; printed only")
    parser.add_argument("--folder", type=Path, help="where models are written; default: temporary")
    options = parser.parse_args(arguments)
    reason = unavailable_reason()
    if reason is not None:
        raise SystemExit(f"the memory of the methods cannot be limited: {reason}")
    cases = QUICK if options.quick else CASES
    cases = tuple(case for case in cases if options.models in case.model.name)
    if not cases:
        parser.error(f"no model has {options.models!r} in its name: they are {names_of(CASES)}")
    written = not options.quick and not options.only
    kept = kept_rows(options.models) if written else []
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="blockswap-disk-", dir=options.folder) as folder:
        for measured in measure(cases, Path(folder), options.only):
            rows = in_order([*kept, *measured]) if written else measured
            print(summary_table(rows), file=sys.stderr, flush=True)
            if written:
                write(rows)
    print(markdown(rows, THREADS))
    missed = [sentence for row in rows for sentence in misses(row)]
    for sentence in missed:
        print(f"MISSED: {sentence}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
