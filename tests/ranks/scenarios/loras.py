"""LoRAs on several ranks: merged at opening, changed while the model is open, and refused."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import forward, fresh
from safetensors.torch import save_file
from torch.distributed.device_mesh import DeviceMesh

import blockswap
from blockswap.ranks import group
from blockswap.swap.assembly.unit_reader import Loader

from .given import device_of, linked

_LAYERS = {"a": ("blocks.1.attn1.to_q", "blocks.4.attn2.to_k"), "b": ("blocks.2.attn1.to_v",)}


def changed_loras(rank: int, mesh: DeviceMesh, path: str, device: str, args: Any) -> dict[str, Any]:
    """One sequence of LoRAs with all ranks and by each rank alone, and what is refused in between.

    Four blocks stay, so that what stays is merged anew, too.
    """
    where = device_of("cpu") if device == "cpu" else linked(device)
    a, b = _written(rank, path)
    wrong: Any = []
    sequence = [[(a, 0.5)], [(a, 0.25)], [(b, 1.0), (a, 2.0)], [], [(a, 0.5)]]
    outs = []
    with torch.no_grad():
        for shared in (None, mesh):
            model: Any = blockswap.open_transformer(
                path, args, device=where, loras=sequence[0], mesh=shared
            )
            outs.append([forward(model, "diffusers", where)])
            for loras in sequence[1:]:
                model.blockswap.set_loras(loras)
                outs[-1] += [forward(model, "diffusers", where) for _ in range(2)]
            if shared is not None:
                wrong = [
                    _refused(model, (lambda one=one: model.blockswap.set_loras(one)), where)
                    for one in ([(a, 1.0 + rank)], [a] if rank else [], [f"{path}.none"], [path])
                ]
                wrong.append(_failing(model, [(a, 3.0)], rank, where))
                wrong.append(_failing(model, [(b, 3.0)], rank, where))
            report = str(model.blockswap.report())
            model.blockswap.close()
        plain = forward(fresh("diffusers").to(where), "diffusers", where)
    alone, together = outs
    return {
        "equal": [torch.equal(one, two) for one, two in zip(alone, together, strict=True)],
        "changed": len({out.double().sum().item() for out in together}),
        "none": torch.equal(together[5], plain),
        "refused": [said for said, _ in wrong],
        "as before": [torch.equal(out, together[-1]) for _, out in wrong],
        "told": "LoRAs are" in report,
    }


def of_what_is_kept(rank: int, mesh: DeviceMesh, folder: str, args: Any) -> dict[str, Any]:
    """A LoRA on what the class keeps in fp32, of a file in 16 bits; weights are shared, or not.

    At opening, changed later, and taken out again.
    """
    import files

    here, path, lora = device_of("cpu"), Path(folder), f"{folder}/lora.safetensors"
    if rank == 0:
        files.build("t2v").save_config(path)
        held = {name: value.bfloat16() for name, value in files.weights("t2v").items()}
        save_file(held, path / "diffusion_pytorch_model.safetensors")
        draw = torch.Generator().manual_seed(1)
        size = held["blocks.0.norm2.weight"].shape
        save_file({"blocks.0.norm3.diff": torch.randn(size, generator=draw)}, lora)
    dist.barrier()
    found: dict[str, Any] = {}
    for name, first, second in (
        ("at opening", [(lora, 0.7)], None),
        ("later", [], [(lora, 0.7)]),
        ("no longer", [(lora, 0.7)], []),
    ):
        outs = []
        for shared in (None, mesh):
            model: Any = blockswap.open_transformer(
                path, args, device=here, loras=first, mesh=shared
            )
            try:
                if second is not None:
                    model.blockswap.set_loras(second)
                outs.append(files.forward(model, "t2v", here))
            except blockswap.BlockSwapError as error:
                found[f"{name}, refused"] = str(error)
            model.blockswap.close()
        found[name] = [torch.equal(out, outs[0]) for out in outs]
    return found


def changed_by_one(rank: int, mesh: DeviceMesh, path: str, args: Any) -> dict[str, Any]:
    """One rank changes LoRAs, the other runs on: what it says, and what both compute then."""
    group.WAIT_SECONDS = 2.0
    here = torch.device("cpu")
    a, _ = _written(rank, path)
    with torch.no_grad():
        model: Any = blockswap.open_transformer(
            path, args, device=here, loras=[(a, 0.5)], mesh=mesh
        )
        before = forward(model, "diffusers", here)
        began, said = time.monotonic(), ""
        if rank == 0:
            said, _ = _refused(model, lambda: model.blockswap.set_loras([(a, 1.0)]), here)
        else:
            forward(model, "diffusers", here)
        after = [forward(model, "diffusers", here) for _ in range(2)]
        waited = time.monotonic() - began
        model.blockswap.close()
    same = [torch.equal(out, before) for out in after]
    return {"same": same, "said": said, "waited": waited}


def experts_with_loras(rank: int, mesh: DeviceMesh, path: str) -> list[bool]:
    """Two experts, one with a LoRA, from the file and in it; then the other way round."""
    here, (a, _) = torch.device("cpu"), _written(rank, path)
    outs: list[list[torch.Tensor]] = []
    with torch.no_grad():
        for shared, budget in ((None, {}), (mesh, {}), (mesh, {"ram_budget": 0})):
            args: Any = {"blocks": "1-3", **budget}
            experts: Any = blockswap.open_experts(
                [path, path], args, device=here, loras=[[(a, 0.5)], []], mesh=shared
            )
            outs.append([forward(one, "diffusers", here) for one in experts])
            experts[0].blockswap.set_loras([])
            outs[-1] += [forward(one, "diffusers", here) for one in experts]
            for one in experts:
                one.blockswap.close()
        plain = forward(fresh("diffusers"), "diffusers", here)
    wanted = [outs[0][0], plain, plain, plain]
    same = [torch.equal(o, w) for out in outs for o, w in zip(out, wanted, strict=True)]
    return [*same, not torch.equal(outs[0][0], plain)]


def _refused(model: Any, call: Callable[[], None], where: torch.device) -> tuple[str, torch.Tensor]:
    """What the call says, and what the model computes after it."""
    try:
        call()
    except blockswap.BlockSwapError as error:
        return str(error), forward(model, "diffusers", where)
    return "", forward(model, "diffusers", where)


def _failing(model: Any, loras: Any, rank: int, where: torch.device) -> tuple[str, torch.Tensor]:
    """The same where one rank's first reading fails; the one that reads for all, if there is."""
    stored, failed = Loader.stored, []

    def fail(self: Loader, name: str, tensors: Any) -> Any:
        if not failed:
            failed.append(name)
            raise blockswap.errors.ReadError("the disk is gone")
        return stored(self, name, tensors)

    if rank == 0:
        Loader.stored = fail  # type: ignore[method-assign]
    try:
        return _refused(model, lambda: model.blockswap.set_loras(loras), where)
    finally:
        Loader.stored = stored  # type: ignore[method-assign]


def _written(rank: int, path: str) -> tuple[str, str]:
    """The model, and two LoRAs."""
    files = {name: f"{path}.{name}.safetensors" for name in _LAYERS}
    if rank == 0:
        save_file(fresh("diffusers").state_dict(), path, {"wan.num_heads": "3"})
        draw = torch.Generator().manual_seed(1)
        for name, layers in _LAYERS.items():
            parts = [(layer, part) for layer in layers for part in "AB"]
            shapes = {"A": (4, 48), "B": (48, 4)}
            factors = {f"{layer}.lora_{part}.weight": torch.randn(shapes[part], generator=draw)
                       for layer, part in parts}  # fmt: skip
            save_file(factors, files[name])
    dist.barrier()
    return files["a"], files["b"]
