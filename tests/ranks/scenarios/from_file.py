"""Blocks that stay in the file: each rank reads its part, others' come from them; what is read."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import forward, fresh, metadata, skeleton
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import DeviceMesh

import blockswap
from blockswap.layout.header import read_header
from blockswap.plan.timing.shared_link import RankRates
from blockswap.ranks import companions, group, same_model

from .given import Wide, device_of, linked, peak_of_ranks, pss


def from_file(rank: int, mesh: DeviceMesh, device: str, folder: str) -> list[dict[str, Any]]:
    """Forwards of models in their files, some blocks beside in memory: list, count, automatic."""
    where = device_of("cpu") if device == "cpu" else linked(device)
    RankRates.pay = lambda *_: True  # type: ignore[method-assign]
    found = []
    for family, args in (
        ("mini", {"blocks": "0,2-3", "prefetch_blocks": 1, "ram_budget": 0}),
        ("original", {"blocks_to_swap": 4, "prefetch_blocks": 1, "ram_budget": 0}),
        ("original", {"blocks_to_swap": 6, "prefetch_blocks": 1, "ram_budget": 680_000}),
        ("original", {"vram_budget": 640_000, "ram_budget": 0}),
    ):
        path = _written(rank, Path(folder), family)
        with torch.no_grad():
            expected = forward(fresh(family).to(where), family, where)
            model: Any = blockswap.open_transformer(
                path, args, device=where, skeleton=skeleton(family), mesh=mesh
            )
            outputs = [forward(model, family, where) for _ in range(3)]
            swap = model.blockswap
            counters, plan = swap.measured().counters, swap.plan
            sentences = swap.measured().sentences
            swap.close()
        found.append(
            {
                "equal": [torch.equal(out, expected) for out in outputs],
                "tiers": sorted({plan.tier_of(name) for name in plan.streamed}),
                "gathers": counters.gathers,
                "streamed": len(plan.streamed),
                "parted": [s for s in sentences if "brings all of every block" in s],
                "said": [s for s in plan.sentences if "of this host" in s or "each rank" in s],
            }
        )
    return found


def read_once(rank: int, mesh: DeviceMesh, folder: str, args: Any) -> dict[str, Any]:
    """Blocks of 4 MiB on the CPU: bytes read at opening and by forwards, and memory."""
    path = Path(folder) / "wide.safetensors"
    torch.manual_seed(7)
    if rank == 0:
        save_file(Wide().state_dict(), path)
    dist.barrier()
    with torch.device("meta"):
        bare = Wide().requires_grad_(False)
    x = torch.linspace(-1, 1, 2048).reshape(2, 1024)
    before, memory = _read(), pss()
    with peak_of_ranks(rank) as opening:
        model: Any = blockswap.open_transformer(path, args, device="cpu", skeleton=bare, mesh=mesh)
    opened = _read()
    with torch.no_grad(), peak_of_ranks(rank) as running:
        outs = [model(x) for _ in range(3)]
    counters, held = model.blockswap.measured().counters, pss()
    dist.barrier()
    plan = model.blockswap.plan
    with peak_of_ranks(rank) as closing:
        model.blockswap.close()
    return {
        "peaks": [moment.above for moment in (opening, running, closing)],
        "left over": closing.after,
        "outs": [out.double().sum().item() for out in outs],
        "opening": opened - before,
        "forwards": _read() - opened,
        "counted": counters.read_bytes,
        "gathered": counters.gathered_bytes,
        "held": held - memory,
        "slots": plan.slots * plan.slot_bytes,
        "slabs": plan.streamed_bytes,
        "said": list(plan.sentences),
        "left": sorted(os.listdir("/dev/shm")),
    }


def as_stored(rank: int, mesh: DeviceMesh, folder: str) -> dict[str, bool]:
    """Quantised files of which some blocks stay there, and a text encoder: beside one process's."""
    import files
    from tiny_encoders import ENCODERS, encode, prompt, same

    shelf, here = files.Shelf(Path(folder)), torch.device("cpu")
    if rank == 0:
        ENCODERS["UMT5EncoderModel"].build().save_pretrained(Path(folder) / "encoder")
        for name in ("fp8-scale_weight", "gguf-mixed"):
            shelf.file(name, "t2v")
    dist.barrier()
    found, args = {}, {"blocks_to_swap": 2, "ram_budget": 0}
    for name in ("fp8-scale_weight", "gguf-mixed"):
        outs = []
        for shared in (None, mesh):
            model: Any = blockswap.open_transformer(
                shelf.file(name, "t2v"), args, device=here, mesh=shared
            )
            outs += [files.forward(model, "t2v", here) for _ in range(2)]
            gathers = model.blockswap.measured().counters.gathers
            model.blockswap.close()
        found[name] = all(torch.equal(out, outs[0]) for out in outs) and gathers >= 2
    outs = []
    for how in ({}, {"mesh": mesh}, {"mesh": mesh, "args": args}):
        model = blockswap.open_text_encoder(
            Path(folder) / "encoder", **{"args": {"blocks_to_swap": 2}, **how}, device="cpu"
        )
        outs.append(encode(model, prompt()))
        gathers = model.blockswap.measured().counters.gathers
        model.blockswap.close()
    found["encoder"] = all(same(out, outs[0]) for out in outs) and gathers >= 2
    return found


def unequal_hosts(rank: int, mesh: DeviceMesh, folder: str) -> dict[str, Any]:
    """One rank as on a host of its own, and two others: from memory and from the file."""
    group._place = lambda: "one" if rank == 0 else "other"  # type: ignore[assignment]
    here, args = torch.device("cpu"), {"blocks_to_swap": 4, "prefetch_blocks": 1}
    path = _written(rank, Path(folder), "mini")
    found: dict[str, Any] = {}
    with torch.no_grad():
        expected = forward(fresh("mini"), "mini", here)
        for name, budget in (("memory", {}), ("file", {"ram_budget": 0})):
            model: Any = blockswap.open_transformer(
                path, {**args, **budget}, device=here, skeleton=skeleton("mini"), mesh=mesh
            )
            equal = [torch.equal(forward(model, "mini", here), expected) for _ in range(2)]
            report = blockswap.report_of_ranks(model.blockswap, mesh)
            found[name] = {
                "equal": equal,
                "gathers": model.blockswap.measured().counters.gathers,
                "hosts": [row[1] for row in report.rows()],
            }
            model.blockswap.close()
    return found


def other_copies(rank: int, mesh: DeviceMesh, folder: str) -> dict[str, Any]:
    """Two hosts with copies of a file that differ in one byte, somewhere: what each says, and when.

    Copies are looked at as if they were large: not where the byte is.
    """
    group._place = lambda: f"host {rank // 2}"  # type: ignore[assignment]
    companions.GATHER_SECONDS = 1.0
    same_model.SMALL_BYTES, same_model.LOOK_BYTES = 0, 16
    here, path = torch.device("cpu"), _written(rank, Path(folder), "mini")
    header = read_header(path)
    places = {t.name: t.offset + t.nbytes - 1 for t in header.tensors}
    found: dict[str, Any] = {}
    for name, changed, given in (
        ("none", None, {"ram_budget": 0}),
        ("in a block", "blocks.2.ffn.0.weight", {"ram_budget": 0}),
        ("in what stays", "text_embedding.0.weight", {"ram_budget": 0}),
        ("in memory", "blocks.2.ffn.0.weight", {}),
        ("loaded", "blocks.2.ffn.0.weight", None),
    ):
        copied = Path(folder) / f"{name} {rank // 2}.safetensors"
        if rank % 2 == 0:
            content = bytearray(path.read_bytes())
            if rank and changed is not None:
                content[places[changed]] ^= 1
            copied.write_bytes(content)
        dist.barrier()
        found[name] = _until_refused(copied, given, mesh, here)
        dist.barrier()
    return found


def _until_refused(path: Path, given: Any, mesh: DeviceMesh, here: torch.device) -> list[str]:
    """What opening and three forwards are refused with, and what the report says of it."""
    said, model = [], None
    try:
        args = {"blocks": "1-3", "prefetch_blocks": 1, **(given or {})}
        if given is None:
            model = skeleton("mini").to_empty(device="cpu")
            model.load_state_dict(load_file(path))
            blockswap.swap_blocks(model, args, device=here, mesh=mesh)
        else:
            model = blockswap.open_transformer(
                path, args, device=here, skeleton=skeleton("mini"), mesh=mesh
            )
    except blockswap.BlockSwapError as error:
        return [f"{type(error).__name__}: {error}"]
    for _ in range(3):
        try:
            with torch.no_grad():
                forward(model, "mini", here)
            said.append("")
        except blockswap.BlockSwapError as error:
            said.append(f"{type(error).__name__}: {error}")
        dist.barrier()  # else a rank may be through before the other host has told anything
    said += [s for s in model.blockswap.measured().sentences if "host" in s]
    model.blockswap.close()
    return said


def _written(rank: int, folder: Path, family: str) -> Path:
    path = folder / f"{family}.safetensors"
    if rank == 0 and not path.exists():
        save_file(fresh(family).state_dict(), path, metadata(family))
    dist.barrier()
    return path


def _read() -> int:
    """Bytes that this process has asked the system to read."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))
