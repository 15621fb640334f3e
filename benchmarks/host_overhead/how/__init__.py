"""Measures the host time of one setting: each block's call timed, swapped and bare in turn."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.host_overhead.how.null_device import null_device
from benchmarks.host_overhead.how.stopwatch import Stopwatch
from benchmarks.host_overhead.what import BLOCKS, FORWARDS, TENSORS, Overhead
from benchmarks.shared.from_file import opened_from_file
from blockswap import BlockSwapArgs, open_transformer, swap_blocks
from blockswap.ranks.companions import CompanionRanks
from blockswap.ranks.group import Ranks
from blockswap.ranks.ledger import Ledger, ledger_bytes
from blockswap.ranks.segment import make_segment
from blockswap.stream.engine.schedule import Schedule
from blockswap.stream.engine.streamer import Streamer
from blockswap.stream.engine.supply import Supply
from blockswap.stream.marks import Recorder
from blockswap.stream.pool.gathers import Gathers
from blockswap.stream.pool.pool import Pool
from blockswap.stream.units import transfer
from blockswap.stream.units.binding import Binding
from blockswap.swap.running.handle import Swap
from one_rank import opened, swapped

GATHERS = "gathers: agreeing on them and calling them"
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
    "looking whether others changed them": ((Binding, "refuse_changed"), (Binding, "lost")),
    "enqueueing the copy": ((transfer, "_enqueue"),),
    GATHERS: (
        (Gathers, "add"),
        (Gathers, "complete"),
        (Gathers, "complete_copied"),
    ),
    "waiting for reads": ((Gathers, "_read"), (Streamer, "_wait_for_read")),
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


def attribute(open_model: Callable[[], TrivialModel]) -> dict[str, float]:
    """Where the time goes, in microseconds per block as the stopwatch sees them."""
    stopwatch, forwards = Stopwatch(), 100
    with stopwatch.watching(SECTIONS):
        swapped = open_model()
        block_seconds(swapped, 20)
        stopwatch.seconds.clear()
        block_seconds(swapped, forwards)
    calls = (forwards + 20) * BLOCKS
    booked = {name: seconds / calls * 1e6 for name, seconds in stopwatch.seconds.items() if seconds}
    bare = statistics.fmean(block_seconds(TrivialModel().eval(), forwards)) * 1e6
    whole = statistics.fmean(swapped.seconds) * 1e6
    return {AROUND: whole - bare - sum(booked.values())} | booked


def null_accelerator(streamed: int) -> Overhead:
    """From RAM to an accelerator that does nothing, with automatic slots."""
    args = BlockSwapArgs(blocks_to_swap=streamed)
    with null_device() as device:
        model = TrivialModel().eval()
        with swap_blocks(model, args, device="null"):
            overhead = measure(f"null accelerator, {streamed} of {BLOCKS} streamed", model)
            before, forwards = Counter(device.calls), 50
            block_seconds(model, forwards)
            calls = {
                name: (count - before[name]) / (forwards + 20) / BLOCKS
                for name, count in device.calls.items()
            }
        with ExitStack() as closing:

            def open_it() -> TrivialModel:
                timed = TrivialModel().eval()
                closing.enter_context(swap_blocks(timed, args, device="null"))
                return timed

            sections = attribute(open_it)
    return replace(overhead, sections=sections, device_calls=calls)


class Alike(CompanionRanks):
    """Ranks that say what this one says at once, and whose parts are there: no time but its own."""

    def __init__(self, ranks: int) -> None:
        ledger = Ledger(make_segment(ledger_bytes(1), "gathers"), 0, 1)
        super().__init__(Ranks(None, (0,), 0, ("here",), 60.0), _Nothing(), ledger, 60.0)
        self.parts = ranks


class _Nothing:
    """See `ranks.exchange.Exchange`."""

    def gather(self, whole: torch.Tensor, part: torch.Tensor) -> None: ...

    def failed(self) -> None: ...

    def close(self) -> None: ...


def in_parts(ranks: int = 2) -> list[Overhead]:
    """One of several ranks that bring each a part of every block: from RAM, then from the file."""
    args, found = BlockSwapArgs(blocks_to_swap=BLOCKS), []
    with null_device() as device:

        def in_memory() -> AbstractContextManager[TrivialModel]:
            return _streaming(lambda model: swapped(model, args, Alike(ranks), device))

        def in_file() -> AbstractContextManager[TrivialModel]:
            def open_it(path: Path, skeleton: TrivialModel) -> None:
                opened(path, skeleton, args, Alike(ranks), device)

            return _from_file(open_it)

        ways = {"RAM in parts": in_memory, "the file in parts, waits included": in_file}
        for where, opening in ways.items():
            with opening() as model:
                overhead = measure(f"null accelerator, {ranks} ranks, from {where}", model)
            with ExitStack() as closing:
                sections = attribute(partial(_entered, closing, opening))
            found.append(replace(overhead, sections=sections))
    return found


def _entered(
    closing: ExitStack, opening: Callable[[], AbstractContextManager[TrivialModel]]
) -> TrivialModel:
    return closing.enter_context(opening())


@contextmanager
def _streaming(swap: Callable[[TrivialModel], Swap]) -> Iterator[TrivialModel]:
    model = TrivialModel().eval()
    with swap(model):
        yield model


@contextmanager
def _from_file(open_it: Callable[[Path, TrivialModel], object]) -> Iterator[TrivialModel]:
    with opened_from_file(lambda: TrivialModel().eval(), open_it) as (model, _):
        yield model


def disk_to_cpu() -> Overhead:
    """From a file to the CPU: the forward thread also waits for each (tiny) read."""

    def open_it(path: Path, skeleton: TrivialModel) -> None:
        open_transformer(path, BlockSwapArgs(), device="cpu", skeleton=skeleton)

    with _from_file(open_it) as model:
        return measure(
            f"disk to CPU, {BLOCKS} of {BLOCKS} streamed, waits for reads included", model
        )
