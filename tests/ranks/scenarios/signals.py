"""Ranks that a signal ends, interrupts or stops at some moment: what the others say and compute."""

import contextlib
import faulthandler
import gc
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import forward, fresh, metadata, skeleton
from safetensors.torch import save_file
from torch.distributed.device_mesh import DeviceMesh

import blockswap
from blockswap.plan.timing.shared_link import RankRates
from blockswap.ranks import companions, exchange, group, segment, torch_groups
from blockswap.stream.engine.streamer import Streamer

from .given import device_of, given, linked

HANGS = 150  # gloo waits twice its minute for a rank that ends while it connects a group
IN_FILE = {"blocks_to_swap": 4, "prefetch_blocks": 1, "ram_budget": 0}


def signalled(rank: int, mesh: DeviceMesh, path: str, **asked: Any) -> dict[str, Any]:
    """`number` ("handled": a SIGTERM that raises SystemExit) for rank 1, or all, at a moment.

    `tier`: blocks in the file, in memory, or in memory beside the simulated accelerator. `when`: at
    a moment that has a name, or so many seconds after the ranks have met.
    """
    tier, when, number, everybody = (asked[name] for name in ("tier", "when", "number", "all"))
    where = linked("sim-eager") if tier == "accelerator" else device_of("cpu")
    RankRates.pay = lambda *_: True  # type: ignore[method-assign]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as nohup has it
    if number == "handled":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if rank == 0:
        save_file(fresh("mini").state_dict(), path, metadata("mini"))
    pids: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(pids, os.getpid())
    what = signal.SIGTERM if number == "handled" else signal.Signals[number]

    def end() -> None:
        if everybody or rank == 1:
            _note_segments(path, rank)
            os.kill(os.getpid(), what)
            time.sleep(0.01)  # for an interrupt to arrive

    def end_other() -> None:
        if rank == 0:
            time.sleep(0.3)
            os.kill(pids[1], what)

    if isinstance(when, float):
        faulthandler.dump_traceback_later(HANGS, exit=True)
        group.ranks_of(mesh)
        threading.Timer(when, end).start()
    else:
        _at(when, end, end_other)
    with torch.no_grad():
        wanted = forward(fresh("mini").to(where), "mini", where)
    found: dict[str, Any] = {"equal": [], "said": []}
    began = time.monotonic()
    with warnings.catch_warnings(), contextlib.suppress(blockswap.BlockSwapError):
        warnings.simplefilter("ignore")
        _run(rank, mesh, (path, tier, where), found, end if when == "between" else None, wanted)
    found["waited"] = time.monotonic() - began
    gc.collect()
    found["segments"] = Path("/proc/self/maps").read_text().count("memfd:blockswap")
    return found


def _run(
    rank: int,
    mesh: DeviceMesh,
    given_as: tuple[str, str, torch.device],
    found: dict[str, Any],
    between: Callable[[], None] | None,
    wanted: torch.Tensor,
) -> None:
    path, tier, where = given_as
    try:
        if tier == "file":
            model: Any = blockswap.open_transformer(
                path, IN_FILE, device=where, skeleton=skeleton("mini"), mesh=mesh
            )
        else:
            model = given(rank, "mini", "meta")
            args = {"blocks_to_swap": 4, "prefetch_blocks": 1}
            blockswap.swap_blocks(model, args, device=where, mesh=mesh)
        with model.blockswap as swap, torch.no_grad():
            for number in range(3):
                found["equal"].append(torch.equal(forward(model, "mini", where), wanted))
                if number == 0 and between is not None:
                    dist.barrier()
                    between()
            found["said"] += [s for s in swap.measured().sentences if "brings all" in s]
    except blockswap.BlockSwapError as error:
        found["said"].append(f"{type(error).__name__}: {error}")
        raise


def _at(when: str, end: Callable[[], None], end_other: Callable[[], None]) -> None:
    """Calls `end` at that moment, on every rank; `end_other` where another is waited for."""
    steps = 0
    exchange_said = group._exchange

    def counted(ranks: Any, what: str, said: object) -> Any:
        nonlocal steps
        steps += 1
        if steps == 14:
            (end_other if when == "waiting" else end)()
            if when == "unseen":
                dist.all_gather = _Blind  # type: ignore[assignment]
        return exchange_said(ranks, what, said)

    if when in ("opening", "waiting", "unseen"):
        group._exchange = counted
    if when in ("meeting", "met"):
        group.WAIT_SECONDS = companions.GATHER_SECONDS = 3.0
        torch_groups._meet = _ending_a_meeting(torch_groups._meet, when, end)
    if when == "in a forward":
        leave, left = Streamer.leave, 0

        def leaving(self: Streamer, *given_to: Any) -> Any:
            nonlocal left
            left += 1
            if left == 9:  # in the second forward
                end()
            return leave(self, *given_to)

        Streamer.leave = leaving  # type: ignore[method-assign]
    if when == "in a gather":
        for way in (exchange.SharedExchange, exchange.GroupExchange):
            way.gather = _ending(way.gather, end)  # type: ignore[attr-defined]
    if when == "closing":
        drain = Streamer.drain

        def draining(self: Streamer) -> None:
            end()
            drain(self)

        Streamer.drain = draining  # type: ignore[method-assign]


class _Blind:
    """What gloo gives where it does not see that a rank has ended: it waits for its timeout."""

    def __init__(self, *_: Any, **named: Any) -> None:
        """Nothing is sent."""

    def is_completed(self) -> bool:
        return False


def _ending(gather: Callable[..., None], end: Callable[[], None]) -> Callable[..., None]:
    calls = 0

    def ending(self: Any, *tensors: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == 11:  # after those that are measured, and a forward
            end()
        gather(self, *tensors)

    return ending


def _ending_a_meeting(meet: Callable[..., Any], when: str, end: Callable[[], None]) -> Any:
    """Of the ranks that start a group for gathers: they have met before, to agree at all."""
    met = 0

    def ending(*given_to: Any) -> Any:
        nonlocal met
        met += 1
        if when == "meeting" and met == 2:
            end()
        told = meet(*given_to)
        if when == "met" and met == 2:
            end()
        return told

    return ending


def _note_segments(path: str, rank: int) -> None:
    """Which shared memory this rank has, for whoever looks for it afterwards."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    found = {line.split()[4] for line in lines if "memfd:blockswap" in line}
    Path(f"{path}.segments.{rank}").write_text("\n".join(sorted(found)))


def stopped(rank: int, mesh: DeviceMesh, path: str, locked: bool) -> dict[str, Any]:
    """Rank 1 is stopped (SIGSTOP) in a forward, also while it has the lock, and goes on later."""
    companions.GATHER_SECONDS = segment.LOCK_SECONDS = 1.0
    here = device_of("cpu")
    if rank == 0:
        save_file(fresh("mini").state_dict(), path, metadata("mini"))
    pids: list[Any] = [None] * 2
    dist.all_gather_object(pids, os.getpid())
    model: Any = blockswap.open_transformer(
        path, IN_FILE, device=here, skeleton=skeleton("mini"), mesh=mesh
    )
    swap = model.blockswap
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = forward(fresh("mini"), "mini", here)
        outs = [forward(model, "mini", here)]
        dist.barrier()
        said = ""
        if rank == 1:
            _stop(model, locked=locked)
        try:
            outs += [forward(model, "mini", here) for _ in range(2)]
        except blockswap.BlockSwapError as error:
            said = f"{type(error).__name__}: {error}"
        said += "; ".join(s for s in swap.measured().sentences if "brings all" in s)
        if rank == 0:
            swap.close()  # nor does this wait for the other
            os.kill(pids[1], signal.SIGCONT)
        dist.barrier()
    swap.close()
    return {"equal": [torch.equal(out, wanted) for out in outs], "said": said}


def _stop(model: Any, *, locked: bool) -> None:
    if not locked:
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    ledger = model.blockswap._streamer._pool.gathers.companions._ledger
    with ledger._segment.locked():
        os.kill(os.getpid(), signal.SIGSTOP)
