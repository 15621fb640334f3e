"""Host time that the engine takes per block: hooks, binding, bookkeeping, enqueueing.

    python -m benchmarks.host_overhead       # seconds; writes benchmarks/results/host_overhead.*

Blocks have 27 tensors, as those of Wan 2.1, and a forward that does nothing. Each block's call is
timed by itself, in the same model bare and swapped, in turn; the difference of the medians is the
engine's. (Timing whole forwards would measure the machine's scheduler: other processes take a
slice out of nearly every one.)
"""

import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast
from unittest import mock

import torch
from safetensors.torch import save_file

from benchmarks.null_device import NullDevice
from benchmarks.shared.machine import machine
from benchmarks.shared.markdown import bullet_list
from benchmarks.shared.results import RESULTS
from benchmarks.stopwatch import Stopwatch
from blockswap import BlockSwapArgs, open_transformer, swap_blocks
from blockswap.stream.engine.schedule import Schedule
from blockswap.stream.engine.streamer import Streamer
from blockswap.stream.engine.supply import Supply
from blockswap.stream.marks import Recorder
from blockswap.stream.pool.pool import Pool
from blockswap.stream.units import transfer
from blockswap.stream.units.binding import Binding
from blockswap.swap.running.handle import Swap

BLOCKS = 40
TENSORS = 27
FORWARDS = 400
TARGET_MICROSECONDS = 100.0

# Every measured function belongs to the section that its own time is booked to.
SECTIONS = {
    "entering and leaving": (
        (Streamer, "enter"),
        (Streamer, "leave"),
        (Streamer, "_claim"),
        (Streamer, "_make_ready"),
        (Streamer, "_release"),
        (Streamer, "_wait_ready"),
    ),
    "prefetch: which block, which slot": (
        (Supply, "fetch_ahead"),
        (Supply, "slot_of"),
        (Supply, "load"),
        (Schedule, "entered"),
        (Schedule, "begin_forward"),
        (Pool, "find"),
        (Pool, "evictable"),
    ),
    "hanging 27 tensors in, and out": ((Binding, "bind"), (Binding, "unbind")),
    "enqueueing the copy": ((transfer, "_enqueue"),),
    "time stamps and counters": (
        (Recorder, "take"),
        (Recorder, "completed"),
        (Recorder, "discard"),
    ),
}
AROUND = "torch: hook calls and torch.compiler.disable"


class TrivialBlock(torch.nn.Module):
    """27 small tensors and no computation."""

    def __init__(self) -> None:
        super().__init__()
        for number in range(TENSORS):
            self.register_parameter(
                f"weight{number}", torch.nn.Parameter(torch.zeros(16), requires_grad=False)
            )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


class TrivialModel(torch.nn.Module):
    """Blocks one after the other; `seconds` collects what each call took."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(TrivialBlock() for _ in range(BLOCKS))
        self.seconds: list[float] = []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        now, seconds = time.perf_counter, self.seconds
        for block in self.blocks:
            began = now()
            hidden = block(hidden)
            seconds.append(now() - began)
        return hidden


@dataclass(frozen=True, slots=True)
class Overhead:
    """Microseconds of host time per block; `sections` are shares of them by the stopwatch.

    `device_calls` are the calls per block that a real accelerator would have been given.
    """

    what: str
    median: float
    tenth: float
    ninetieth: float
    sections: dict[str, float] = field(default_factory=dict)
    device_calls: dict[str, float] = field(default_factory=dict)


def block_seconds(model: TrivialModel, forwards: int) -> list[float]:
    """Host seconds of each block's call over some forwards, after a few that do not count."""
    hidden = torch.zeros(1)
    with torch.no_grad():
        for _ in range(20):
            model(hidden)
        model.seconds.clear()
        for _ in range(forwards):
            model(hidden)
    return list(model.seconds)


def measure(what: str, swapped: TrivialModel, forwards: int = FORWARDS) -> Overhead:
    """The engine's time per block: of the swapped model less a bare one, run in turn."""
    bare, rounds = TrivialModel().eval(), 8
    floor: list[float] = []
    seconds: list[float] = []
    for _ in range(rounds):
        floor += block_seconds(bare, forwards // rounds)
        seconds += block_seconds(swapped, forwards // rounds)
    nothing = statistics.median(floor)
    each = [(own - nothing) * 1e6 for own in seconds]
    deciles = statistics.quantiles(each, n=10)
    return Overhead(what, statistics.median(each), deciles[0], deciles[-1])


def attribute(swapped: TrivialModel, open_swap: Callable[[], object]) -> dict[str, float]:
    """Where the time goes, in microseconds per block as the stopwatch sees them."""
    stopwatch, forwards = Stopwatch(), 100
    with stopwatch.watching(SECTIONS):
        open_swap()
        block_seconds(swapped, 20)
        stopwatch.seconds.clear()
        block_seconds(swapped, forwards)
    calls = (forwards + 20) * BLOCKS
    booked = {name: seconds / calls * 1e6 for name, seconds in stopwatch.seconds.items()}
    bare = statistics.fmean(block_seconds(TrivialModel().eval(), forwards)) * 1e6
    whole = statistics.fmean(swapped.seconds) * 1e6
    return {AROUND: whole - bare - sum(booked.values())} | booked


def null_accelerator(streamed: int) -> Overhead:
    """From RAM to an accelerator that does nothing, with automatic slots."""
    device, args = NullDevice(), BlockSwapArgs(blocks_to_swap=streamed)
    with mock.patch("blockswap.swap.entry.loaded_model.open_device", return_value=device):
        model = TrivialModel().eval()
        with swap_blocks(model, args, device="null"):
            overhead = measure(f"null accelerator, {streamed} of {BLOCKS} streamed", model)
            before, forwards = Counter(device.calls), 50
            block_seconds(model, forwards)
            calls = {
                name: (count - before[name]) / (forwards + 20) / BLOCKS
                for name, count in device.calls.items()
            }
        timed = TrivialModel().eval()
        opened: list[Swap] = []
        sections = attribute(timed, lambda: opened.append(swap_blocks(timed, args, device="null")))
        opened[0].close()
    return Overhead(
        overhead.what, overhead.median, overhead.tenth, overhead.ninetieth, sections, calls
    )


def disk_to_cpu() -> Overhead:
    """From a file to the CPU: the forward thread also waits for each (tiny) read."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "blocks.safetensors"
        save_file(TrivialModel().state_dict(), file)
        with torch.device("meta"):
            model = TrivialModel().eval()
        open_transformer(file, BlockSwapArgs(), device="cpu", skeleton=model)
        swap = cast(Swap, model.blockswap)
        try:
            return measure(
                f"disk to CPU, {BLOCKS} of {BLOCKS} streamed, waits for reads included", model
            )
        finally:
            swap.close()


def report(results: list[Overhead]) -> str:
    """The results as Markdown."""
    lines = [
        "# Host time of the engine per block",
        bullet_list(conditions()),
        "| | median µs | 10 % below | 90 % below |\n|---|---|---|---|\n"
        + "\n".join(
            f"| {r.what} | **{r.median:.1f}** | {r.tenth:.1f} | {r.ninetieth:.1f} |"
            for r in results
        ),
    ]
    for result in results:
        if result.sections:
            lines += [f"## Where it goes: {result.what}", _section_table(result)]
        if result.device_calls:
            calls = ", ".join(
                f"{name} {count:.2f}"
                for name, count in sorted(result.device_calls.items())
                if count
            )
            lines.append(f"Calls to the device per block: {calls}.")
    return "\n\n".join(lines) + "\n"


def _section_table(result: Overhead) -> str:
    total = sum(result.sections.values())
    ordered = sorted(result.sections.items(), key=lambda item: -item[1])
    rows = "\n".join(
        f"| {name} | {100 * seconds / total:.0f} % | {result.median * seconds / total:.1f} |"
        for name, seconds in ordered
    )
    return f"| part | share | µs of the median |\n|---|---|---|\n{rows}"


def conditions() -> dict[str, str]:
    return machine() | {
        "model": f"{BLOCKS} blocks of {TENSORS} tensors whose forward does nothing",
        "measured": f"every block of {FORWARDS} forwards, bare and swapped in turn",
        "shares": "by a stopwatch around the engine's functions, which itself slows the run",
        "target": f"median at most {TARGET_MICROSECONDS:g} µs with everything streamed from RAM",
    }


def main() -> int:
    """Measures, writes, prints; returns 1 when the median misses the target."""
    results = [null_accelerator(BLOCKS), null_accelerator(BLOCKS // 2), disk_to_cpu()]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "host_overhead.md").write_text(report(results))
    data = {"conditions": conditions(), "results": [asdict(result) for result in results]}
    (RESULTS / "host_overhead.json").write_text(json.dumps(data, indent=1) + "\n")
    print(report(results))
    return 1 if results[0].median > TARGET_MICROSECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
