"""Runs the disk benchmark: writes the models, and takes all methods through interleaved rounds."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.disk_tier.how.folder import Folder, write_model
from benchmarks.disk_tier.how.methods import METHODS
from benchmarks.disk_tier.how.raw import DISCARD, READERS
from benchmarks.disk_tier.how.runner import Child, Runner
from benchmarks.disk_tier.tell import markdown, summary_table, write
from benchmarks.disk_tier.what import (
    CASES,
    OURS,
    QUICK,
    RESIDENT,
    Case,
    Clip,
    Model,
    Row,
    Sample,
    in_order,
    misses,
    names_of,
    rounds_of,
)
from benchmarks.shared import results
from benchmarks.shared.options import parser_of
from memory_group import python, unavailable_reason

# Which part of the host's memory a process got makes a fifth of the rate on virtual machines: the
# raw read is the mean of several processes, started before the methods and after them.
RAW_BEFORE, RAW_AFTER = 2, 2


def kept_rows(models: str) -> list[Row]:
    """Rows of the last results whose model has not `models` in its name; none if that is empty."""
    rows = map(Row.from_json, results.kept_rows("disk_tier") if models else ())
    return [row for row in rows if models not in row.model.name]


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
    command = python("-m", "benchmarks.disk_tier.how.child", "prepare", name, files.root)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name} could not be prepared: {done.stderr[-300:]}", file=sys.stderr)


def run_rows(
    model: Model, folder: Folder, clips: Sequence[Clip], limit_bytes: int, names: Sequence[str]
) -> list[Row]:
    """All rows of one model with the methods of these names."""
    _drop_caches()
    with ExitStack() as stack:
        raws = [_raw(folder, stack) for _ in range(RAW_BEFORE)]
        runners = []
        for name in names:
            runner = Runner(name, folder, limit_bytes)
            stack.callback(runner.close)
            runner.start(clips)
            runners.append(runner)
        raws += [_raw(folder, stack) for _ in range(RAW_AFTER)]
        _drop_caches()
        return [_row(model, clip, limit_bytes, runners, raws) for clip in clips]


def _raw(folder: Folder, stack: ExitStack) -> Child:
    raw = Child(python("-m", "benchmarks.disk_tier.how.raw", folder.root), None)
    stack.callback(raw.close)
    raw.ask()
    return raw


def _row(
    model: Model,
    clip: Clip,
    limit_bytes: int,
    runners: Sequence[Runner],
    raws: Sequence[Child],
) -> Row:
    """Interleaved rounds, each beginning with another method."""
    samples: dict[str, list[Sample]] = {runner.name: [] for runner in runners}
    reads: dict[int, list[float]] = {threads: [] for threads in READERS}
    discarding: list[float] = []
    both: list[float] = []
    resident = next(runner for runner in runners if runner.name == RESIDENT)
    for number in range(rounds_of(model, clip)):
        turn = number % len(runners)
        for runner in (*runners[turn:], *runners[:turn]):
            sample = runner.forward(clip)
            if sample is not None:
                samples[runner.name].append(sample)
        for threads, seconds in _raw_reads(raws).items():
            reads[threads].append(seconds)
        discarding.append(float(raws[0].ask(DISCARD)))
        both.append(statistics.mean(resident.beside(clip, raw) for raw in _ends(raws)))
    tracks = {runner.name: runner.track(samples[runner.name]) for runner in runners}
    assert tracks[RESIDENT].samples
    return Row(model, clip, limit_bytes, tracks, reads, discarding, both)


def _raw_reads(raws: Sequence[Child]) -> dict[int, float]:
    """Seconds by number of threads, the mean of all; like a forward, each behind another one."""
    seconds: dict[int, list[float]] = {threads: [] for threads in READERS}
    for raw in raws:
        raw.ask(str(READERS[0]))
        for threads in READERS:
            seconds[threads].append(float(raw.ask(str(threads))))
    return {threads: statistics.mean(each) for threads, each in seconds.items()}


def _ends(raws: Sequence[Child]) -> tuple[Child, Child]:
    """One that began before the methods, and one that began after them."""
    return raws[0], raws[-1]


def _drop_caches() -> None:
    """What was written or loaded so far was not charged to whom it would serve."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, writes or prints; returns 1 when ours misses a target in any row."""
    parser = parser_of("benchmarks.disk_tier")
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
    print(markdown(rows))
    missed = [sentence for row in rows for sentence in misses(row)]
    for sentence in missed:
        print(f"MISSED: {sentence}", file=sys.stderr)
    return 1 if missed else 0
