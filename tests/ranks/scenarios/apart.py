"""Ranks that were given something else than the others, and ranks that end or leave in odd ways."""

import gc
import os
import shutil
import signal
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
from blockswap.ranks import companions, group
from blockswap.ranks.exchange import GroupExchange
from blockswap.stream.engine.streamer import Streamer

from .given import given, linked

HERE = torch.device("cpu")
IN_FILE = {"blocks_to_swap": 4, "prefetch_blocks": 1, "ram_budget": 0}


def other_requests(rank: int, mesh: DeviceMesh, path: str) -> dict[str, dict[str, str]]:
    """Rank 1 asks for something else: what both say, for blocks in the file and in memory."""
    group.WAIT_SECONDS = 20.0
    other, copy = f"{path}.other.safetensors", f"{path}.copy.safetensors"
    if rank == 0:
        weights = fresh("mini").state_dict()
        save_file(weights, path, metadata("mini"))
        shutil.copy(path, copy)
        save_file({name: weight + 1 for name, weight in weights.items()}, other, metadata("mini"))
    dist.barrier()
    odd = rank == 1
    found: dict[str, dict[str, str]] = {}
    for tier, args in (("file", IN_FILE), ("memory", {"blocks_to_swap": 4})):

        def opened(
            file: str = path, own: Any = args, name: str = "", bare: Any = None, **named: Any
        ) -> Any:
            bare = bare or skeleton("mini")
            if name:
                bare.config = {"eps": name}
            return blockswap.open_transformer(
                file, own, device=HERE, skeleton=bare, mesh=mesh, **named
            )

        already = opened()
        asked: dict[str, Callable[[], Any]] = {
            "file": lambda: opened(other if odd else path),
            "copy": lambda: opened(copy if odd else path),
            "dtype": lambda: opened(dtype=torch.float64 if odd else None),
            "config": lambda: opened(name="1e-6" if odd else "1e-5"),
            "count": lambda: opened(own=dict(args, blocks_to_swap=3) if odd else args),
            "missing": lambda: opened("/none.safetensors" if odd else path),
            "args": lambda: opened(own={"blocks": "3-1"} if odd else args),
            "twice": lambda: opened(bare=already if odd else None),
            "call": lambda: (
                blockswap.swap_blocks(fresh("mini"), args, device=HERE, mesh=mesh).model
                if odd
                else opened()
            ),
        }
        found[tier] = {name: _said(ask) for name, ask in asked.items()}
        with torch.no_grad():
            equal = torch.equal(
                forward(already, "mini", HERE), forward(fresh("mini"), "mini", HERE)
            )
        found[tier]["open one"] = f"still equal: {equal}"
        already.blockswap.close()
    return found


def _said(ask: Callable[[], Any]) -> str:
    try:
        model = ask()
    except blockswap.BlockSwapError as error:
        return f"{type(error).__name__}: {error}"
    said = "; ".join(model.blockswap.plan.sentences)
    with torch.no_grad():
        equal = torch.equal(forward(model, "mini", HERE), forward(fresh("mini"), "mini", HERE))
    model.blockswap.close()
    return f"equal: {equal}; {said}"


def leaving(rank: int, mesh: DeviceMesh, path: str) -> dict[str, list[Any]]:
    """One of two ranks leaves in some way while blocks stay in the file; the other goes on."""
    companions.GATHER_SECONDS = 2.0
    if rank == 0:
        save_file(fresh("mini").state_dict(), path, metadata("mini"))
    dist.barrier()
    with torch.no_grad():
        expected = forward(fresh("mini"), "mini", HERE)
    found = {}
    for name, leave in _WAYS.items():
        model: Any = blockswap.open_transformer(
            path, IN_FILE, device=HERE, skeleton=skeleton("mini"), mesh=mesh
        )
        swap = model.blockswap
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outs = [forward(model, "mini", HERE)]
            gathers = swap.measured().counters.gathers
            dist.barrier()
            if rank == 1:
                outs += leave(model)
                del model, swap
                gc.collect()
                dist.barrier()
                said = []
            else:
                if name == "another mode":
                    outs.append(forward(model, "mini", HERE))
                dist.barrier()
                outs += [forward(model, "mini", HERE) for _ in range(2)]
                said = [s for s in swap.measured().sentences if "brings all" in s]
                swap.close()
                del model, swap
                gc.collect()
        found[name] = [all(torch.equal(out, expected) for out in outs), gathers, len(said)]
        dist.barrier()
    found["segments"] = [Path("/proc/self/maps").read_text().count("blockswap")]
    return found


def _close_twice(model: Any) -> list[torch.Tensor]:
    swap = model.blockswap
    swap.close()
    swap.close()
    return []


def _raise_inside(model: Any) -> list[torch.Tensor]:
    try:
        with model.blockswap:
            raise ValueError("of the caller")
    except ValueError:
        return []


def _fork(model: Any) -> list[torch.Tensor]:
    """The child may neither run nor close the parent's model; the parent goes on, then closes."""
    child = os.fork()
    if not child:
        code = 1
        try:
            forward(model, "mini", HERE)
        except blockswap.errors.StateError:
            model.blockswap.close()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    model.blockswap.close()
    return []


def _other_mode(model: Any) -> list[torch.Tensor]:
    with torch.inference_mode():
        outs = [forward(model, "mini", HERE).clone()]
    model.blockswap.close()
    return outs


_WAYS: dict[str, Callable[[Any], list[torch.Tensor]]] = {
    "closed twice": _close_twice,
    "raised": _raise_inside,
    "dropped": lambda model: [],
    "forked": _fork,
    "another mode": _other_mode,
}


def after_a_failed_gather(rank: int, mesh: DeviceMesh) -> dict[str, Any]:
    """Rank 0 alone has given its group up, as after a gather that failed; then all swap again."""
    where, companions.GATHER_SECONDS = linked("sim-eager"), 5.0
    RankRates.pay = lambda *_: True  # type: ignore[method-assign]
    gather, seen = GroupExchange.gather, []

    def watched(self: GroupExchange, whole: torch.Tensor, part: torch.Tensor) -> None:
        seen.append(self)
        gather(self, whole, part)

    GroupExchange.gather = watched  # type: ignore[method-assign]
    found: dict[str, Any] = {"equal": [], "gathers": []}
    with torch.no_grad():
        expected = forward(fresh("mini").to(where), "mini", where)
        model = given(rank, "mini", "meta")
        for _ in range(2):
            with blockswap.swap_blocks(
                model, {"blocks_to_swap": 4}, device=where, mesh=mesh
            ) as swap:
                found["equal"].append(torch.equal(forward(model, "mini", where), expected))
                found["gathers"].append(swap.measured().counters.gathers)
            dist.barrier()
            if rank == 0:
                seen[-1].failed()
    return found


def odd_groups(rank: int, mesh: DeviceMesh, path: str) -> dict[str, bool]:
    """Three processes: meshes of one and of two, a group that one rank has more; all destroyed."""
    group.WAIT_SECONDS = 20.0
    if rank == 0:
        save_file(fresh("mini").state_dict(), path, metadata("mini"))
        dist.new_group([0], backend="gloo", use_local_synchronization=True)
    alone, pair = DeviceMesh("cpu", [rank]), DeviceMesh("cpu", [0, 2])
    dist.barrier()
    found = {}
    with torch.no_grad():
        expected = forward(fresh("mini"), "mini", HERE)

        def right(over: DeviceMesh, args: Any, last: Callable[[], None] | None = None) -> bool:
            model: Any = blockswap.open_transformer(
                path, args, device=HERE, skeleton=skeleton("mini"), mesh=over
            )
            outs = [forward(model, "mini", HERE) for _ in range(2)]
            if last is not None:
                last()
                outs.append(forward(model, "mini", HERE))
            model.blockswap.close()
            return all(torch.equal(out, expected) for out in outs)

        for tier, args in (("file", IN_FILE), ("memory", {"blocks_to_swap": 4})):
            found[f"{tier}, one"] = right(alone, args)
            if rank != 1:
                found[f"{tier}, two of three"] = right(pair, args)
            found[f"{tier}, three"] = right(mesh, args)
        found["destroyed"] = right(mesh, IN_FILE, dist.destroy_process_group)
    return found


def killed_in_file(rank: int, mesh: DeviceMesh, path: str, when: str, step: int) -> str:
    """Rank 1 is killed at a step of opening, or in closing: what the other says, what it computes.

    `step`: at which agreement of the opening.
    """
    group.WAIT_SECONDS, companions.GATHER_SECONDS = 3.0, 3.0
    if rank == 0:
        save_file(fresh("mini").state_dict(), path, metadata("mini"))
    dist.barrier()
    steps: list[str] = []
    exchange = group._exchange

    def counted(ranks: Any, what: str, said: object) -> Any:
        steps.append(what)
        if rank == 1 and when == "opening" and len(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return exchange(ranks, what, said)

    group._exchange = counted
    if rank == 1 and when == "closing":
        Streamer.drain = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore
    try:
        model: Any = blockswap.open_transformer(
            path, IN_FILE, device=HERE, skeleton=skeleton("mini"), mesh=mesh
        )
    except blockswap.BlockSwapError as error:
        return f"{type(error).__name__}: {error}"
    if when == "opening":
        return f"opened after {len(steps)} steps"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forward(model, "mini", HERE)
        if rank == 1:
            model.blockswap.close()
        equal = torch.equal(forward(model, "mini", HERE), forward(fresh("mini"), "mini", HERE))
    (said,) = [s for s in model.blockswap.measured().sentences if "brings all" in s]
    model.blockswap.close()
    return f"{equal}: {said}"
