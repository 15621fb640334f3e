"""Ranks that refuse, do something else or are killed: what they say, how the others go on."""

import contextlib
import os
import signal
import time
import warnings
from typing import Any

import torch
import torch.distributed as dist
from cases import forward, fresh, metadata, skeleton
from safetensors.torch import save_file
from torch.distributed.device_mesh import DeviceMesh

import blockswap
from blockswap.plan.timing.shared_link import RankRates
from blockswap.ranks import companions, group, segment
from blockswap.stream.engine.streamer import Streamer

from .given import device_of, given, linked, own_accelerator


def refused(rank: int, mesh: DeviceMesh, fault: str) -> str:
    """One rank is at fault: what each of them says, and whether its model still computes."""
    group.WAIT_SECONDS = 3.0
    model = given(rank, "mini", "weights")
    args: Any = {"blocks_to_swap": 2}
    if rank == 1:
        if fault == "other weights":
            with torch.no_grad():
                next(model.blocks[1].parameters()).add_(1)  # type: ignore[index]
        elif fault == "other model":
            del model.blocks[-1]  # type: ignore[union-attr, arg-type]
        elif fault == "args":
            args = {"blocks": "3-1"}
        elif fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "dies in opening":
            segment.map_segment = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "never comes":
            time.sleep(4)
            return "late"
    if fault == "nobody has weights":
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model = model.to("meta")
    began = time.monotonic()
    try:
        blockswap.swap_blocks(model, args, device="cpu", mesh=mesh).close()
    except blockswap.BlockSwapError as error:
        assert "blockswap" not in vars(model)
        if fault != "nobody has weights":
            with torch.no_grad():
                forward(model, "mini", torch.device("cpu"))
        return (
            f"{type(error).__name__}: {error} [{'late' if time.monotonic() - began > 60 else ''}]"
        )
    return "accepted"


def left_alone(rank: int, mesh: DeviceMesh, when: str) -> Any:
    """The rank whose weights are shared is killed after opening or in closing: others go on."""
    model = given(rank, "mini", "meta")
    here = torch.device("cpu")
    with torch.no_grad():
        expected = forward(fresh("mini"), "mini", here)
        if rank == 0 and when == "in closing":
            Streamer.drain = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore
        swap = blockswap.swap_blocks(model, {"blocks_to_swap": 3}, device="cpu", mesh=mesh)
        dist.barrier()
        if rank == 0:
            if when == "in closing":
                swap.close()
                raise AssertionError("it should have been killed")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5)
        equal_now = torch.equal(forward(model, "mini", here), expected)
        swap.close()
        return [equal_now, torch.equal(forward(model, "mini", here), expected)]


def apart(rank: int, mesh: DeviceMesh, path: str, accelerators: bool = False) -> dict[str, Any]:
    """Ranks that do not do the same: how each goes on, what it says, how long it waited.

    `path`: the model's file, in which its blocks stay, on the CPU; "": from memory.
    `accelerators`: each on one of its own.
    """
    if accelerators:
        where = own_accelerator(rank)
    else:
        where = device_of("cpu") if path else linked("sim-eager")
    if path and rank == 0:
        save_file(fresh("mini").state_dict(), path, metadata("mini"))
    dist.barrier()
    companions.GATHER_SECONDS = 2.0
    RankRates.pay = lambda *_: True  # type: ignore[method-assign]
    with torch.no_grad():
        expected = forward(fresh("mini").to(where), "mini", where)
    found = {}
    for what in (
        "another order",
        "one forward less",
        "raises" if path else "runs out of memory",
        "closes",
        "is killed",
    ):
        model: Any = skeleton("mini") if path else given(rank, "mini", "meta")
        with torch.no_grad(), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            args: Any = {"blocks_to_swap": 5, "ram_budget": 0 if path else None}
            if path:
                blockswap.open_transformer(path, args, device=where, skeleton=model, mesh=mesh)
            else:
                blockswap.swap_blocks(model, args, device=where, mesh=mesh)
            swap = model.blockswap
            outputs = [forward(model, "mini", where)]
            gathers = swap.measured().counters.gathers
            began = time.monotonic()
            if rank == 1:
                _misbehave(model, swap, what, where)
            else:
                outputs += [forward(model, "mini", where) for _ in range(2)]
            seconds = time.monotonic() - began
            if what != "is killed":
                dist.barrier()
            if rank == 1 and what != "closes":
                outputs += [forward(model, "mini", where) for _ in range(2)]
            sentences = swap.measured().sentences
            swap.close()
        found[what] = {
            "equal": [torch.equal(out, expected) for out in outputs],
            "gathers": gathers,
            "waited": seconds,
            "said": [s for s in sentences if "brings all of every block" in s],
            "warned": len([w for w in warned if "brings all of every block" in str(w.message)]),
        }
    return found


def _misbehave(model: Any, swap: Any, what: str, where: torch.device) -> None:
    x = torch.zeros(2, 16, device=where)
    if what == "another order":
        for index in (4, 2, 0):
            model.blocks[index](x)
    elif what in ("raises", "runs out of memory"):
        fault = ValueError("no") if what == "raises" else torch.OutOfMemoryError("out of memory")

        def fail(*_: Any) -> None:
            raise fault

        hook = model.blocks[2].register_forward_hook(fail)
        with contextlib.suppress(type(fault)):
            forward(model, "mini", where)
        hook.remove()
    elif what == "closes":
        swap.close()
    elif what == "is killed":
        model.blocks[1].register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        forward(model, "mini", where)
