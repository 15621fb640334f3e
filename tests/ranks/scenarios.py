"""What the ranks of a test do; each function runs in a process of its own, one of a group's."""

import faulthandler
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import forward, fresh, skeleton
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import blockswap
from blockswap.ranks import group

Scenario = Callable[..., Any]


class Wide(nn.Module):
    """Blocks of 4 MiB each, so that weights stand out in a process's memory."""

    def __init__(self, blocks: int = 24) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(1024, 1024, bias=False) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x).tanh()
        return x


def _device(name: str) -> torch.device:
    torch.set_num_threads(1)
    if name == "cpu":
        return torch.device("cpu")
    import simaccel

    assert simaccel.unavailable_reason() is None
    simaccel.configure(mode=name.removeprefix("sim-"), races="raise", poison=True)
    simaccel.reset()
    return torch.device("sim", 0)


def _given(rank: int, family: str, gives: str) -> nn.Module:
    """The model as this rank has it: with weights on the first, else as `gives` says."""
    model = fresh(family)
    if rank == 0 or gives == "weights":
        return model
    for module in model.modules():  # buffers stay real
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(
                    torch.empty_like(parameter, device="meta"), requires_grad=False
                )
    return model


def equal(
    rank: int, mesh: DeviceMesh, device: str, family: str, gives: str, args: Any
) -> dict[str, Any]:
    """Three forwards while swapped and one after closing, beside the unswapped model's."""
    where = _device(device)
    with torch.no_grad():
        expected = forward(fresh(family).to(where), family, where)
        after = forward(fresh(family), family, torch.device("cpu"))
    model = _given(rank, family, gives)
    with torch.no_grad():
        with blockswap.swap_blocks(model, args, device=where, mesh=mesh) as swap:
            outputs = [forward(model, family, where) for _ in range(3)]
            report = str(swap.report())
        closed = forward(model, family, torch.device("cpu"))
    return {
        "equal": [torch.equal(out, expected) for out in outputs],
        "closed": torch.equal(closed, after),
        "streamed": len(swap.plan.streamed),
        "said": "rest once in host memory" in report,
        "staged": "pinning failed" in report,
    }


def opened(rank: int, mesh: DeviceMesh, family: str, path: str) -> dict[str, Any]:
    """A model opened from its file by all ranks, beside the loaded one; bytes that were read."""
    here = torch.device("cpu")
    if rank == 0:
        save_file(fresh(family).state_dict(), path, {"wan.num_heads": "3"})
    dist.barrier()
    with torch.no_grad():
        expected = forward(fresh(family), family, here)
        before = _read_bytes()
        model = blockswap.open_transformer(
            path, {"blocks": "1-3"}, device=here, skeleton=skeleton(family), mesh=mesh
        )
        read = _read_bytes() - before
        outputs = [forward(model, family, here) for _ in range(2)]
        model.blockswap.close()  # type: ignore[union-attr, operator]
        outputs.append(forward(model, family, here))
    return {"equal": [torch.equal(out, expected) for out in outputs], "read": read}


def opened_with_a_lora(rank: int, mesh: DeviceMesh, path: str) -> dict[str, Any]:
    """The same with a LoRA, beside one process of its own; what `set_loras` says."""
    here, lora = torch.device("cpu"), f"{path}.lora.safetensors"
    if rank == 0:
        save_file(fresh("diffusers").state_dict(), path, {"wan.num_heads": "3"})
        draw = torch.Generator().manual_seed(1)
        save_file({f"blocks.1.attn1.to_q.lora_{part}.weight": torch.randn(shape, generator=draw)
                   for part, shape in (("A", (4, 48)), ("B", (48, 4)))}, lora)  # fmt: skip
    dist.barrier()
    args: Any = {"blocks": "1-3"}
    outputs, said = [], ""
    with torch.no_grad():
        for shared in (None, mesh):
            model: Any = blockswap.open_transformer(
                path, args, device=here, loras=[(lora, 0.5)], mesh=shared
            )
            outputs.append(forward(model, "diffusers", here))
            if shared is not None:
                try:
                    model.blockswap.set_loras([])
                except blockswap.errors.StateError as error:
                    said = str(error)
            model.blockswap.close()
        plain = forward(fresh("diffusers"), "diffusers", here)
    return {
        "equal": torch.equal(*outputs), "changed": not torch.equal(plain, outputs[0]), "said": said
    }  # fmt: skip


def _read_bytes() -> int:
    found = re.search(r"^rchar: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found
    return int(found.group(1))


def memory(rank: int, mesh: DeviceMesh, gives: str) -> dict[str, Any]:
    """Proportional bytes of this process before, while swapped, and after closing."""
    torch.manual_seed(7)
    before = _pss()
    with torch.device("cpu" if rank == 0 or gives == "weights" else "meta"):
        model = Wide().requires_grad_(False)
    swap = blockswap.swap_blocks(model, {"blocks_to_swap": 20}, device="cpu", mesh=mesh)
    x = torch.linspace(-1, 1, 1024).expand(2, 1024)
    with torch.no_grad():
        out = model(x)
    dist.barrier()
    opened = _pss()
    dist.barrier()
    swap.close()
    closed = _pss()
    dist.barrier()
    segments = Path("/proc/self/maps").read_text().count("blockswap weights")
    return {
        "opened": opened - before,
        "closed": closed - before,
        "weights": sum(p.numel() * 4 for p in model.parameters()),
        "out": out.double().sum().item(),
        "segments": segments,
        "left": sorted(os.listdir("/dev/shm")),
    }


def refused(rank: int, mesh: DeviceMesh, fault: str) -> str:
    """One rank is at fault: what each of them says, and whether its model still computes."""
    group.WAIT_SECONDS = 3.0
    model = _given(rank, "mini", "weights")
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
        elif fault == "never comes":
            time.sleep(6)
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


def context_parallel(rank: int, mesh: DeviceMesh, kind: str, swapped: str) -> list[bool]:
    """Ulysses over all ranks, beside the unswapped model under Ulysses and without it."""
    from diffusers import ContextParallelConfig

    # diffusers 0.42 divides by the number of accelerators when it sets up, and here is none.
    torch.accelerator.device_count = lambda: 1  # type: ignore[assignment]
    here, family = torch.device("cpu"), kind
    config = ContextParallelConfig(ulysses_degree=mesh.size())
    with torch.no_grad():
        alone = forward(_with_heads(kind), family, here)
        plain = _with_heads(kind)
        plain.enable_parallelism(config=config)
        unswapped = forward(plain, family, here)
        model = _with_heads(kind)
        if swapped == "after":
            model.enable_parallelism(config=config)
        with blockswap.swap_blocks(model, {"blocks": "1-3"}, device="cpu", mesh=mesh):
            if swapped == "before":
                model.enable_parallelism(config=config)
            outputs = [forward(model, family, here) for _ in range(2)]
    return [torch.equal(out, unswapped) for out in outputs] + [torch.equal(unswapped, alone)]


def _with_heads(kind: str) -> Any:
    """A model whose heads and tokens four ranks can share."""
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    sizes: Any = dict(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=96,
        num_layers=6,
    )
    torch.manual_seed(3)
    if kind == "diffusers":
        return WanTransformer3DModel(**sizes).eval()
    return WanVACETransformer3DModel(**sizes, vace_layers=[0, 2, 4], vace_in_channels=8).eval()


def left_alone(rank: int, mesh: DeviceMesh) -> Any:
    """The rank whose weights are shared is killed after opening: the others go on."""
    model = _given(rank, "mini", "meta")
    here = torch.device("cpu")
    with torch.no_grad():
        expected = forward(fresh("mini"), "mini", here)
        swap = blockswap.swap_blocks(model, {"blocks_to_swap": 3}, device="cpu", mesh=mesh)
        dist.barrier()
        if rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5)
        equal_now = torch.equal(forward(model, "mini", here), expected)
        swap.close()
        return [equal_now, torch.equal(forward(model, "mini", here), expected)]


def _pss() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    assert found
    return int(found.group(1)) << 10


def _main() -> None:
    faulthandler.dump_traceback_later(100, exit=True)
    rank, count, folder, scenario, options = json.loads(sys.argv[1])
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count
    )
    mesh = init_device_mesh("cpu", (count,))
    value = globals()[scenario](rank, mesh, **options)
    sys.stdout.write("\n" + json.dumps(value) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the group may lack ranks by now: nobody waits for them


if __name__ == "__main__":
    _main()
