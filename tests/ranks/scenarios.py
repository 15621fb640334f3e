"""What the ranks of a test do; each function runs in a process of its own, one of a group's."""

import copy
import faulthandler
import json
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import forward, fresh, inputs, skeleton
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

import blockswap
from blockswap.plan.timing.shared_link import RankRates
from blockswap.ranks import companions, group, shared_weights
from blockswap.stream.engine.streamer import Streamer

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


def _device(name: str, **rates: float) -> torch.device:
    torch.set_num_threads(1)
    if name == "cpu":
        return torch.device("cpu")
    import simaccel

    assert simaccel.unavailable_reason() is None
    simaccel.configure(mode=name.removeprefix("sim-"), races="raise", poison=True, **rates)
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
    outputs, pairs, said = [], [], ""
    with torch.no_grad():
        for shared in (None, mesh):
            experts: Any = blockswap.open_experts(
                [path, path], args, device=here, loras=[[(lora, 0.5)], []], mesh=shared
            )
            pairs.append([forward(one, "diffusers", here) for one in experts])
            for one in experts:
                one.blockswap.close()
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
        "equal": torch.equal(*outputs),
        "changed": not torch.equal(plain, outputs[0]),
        "experts": [torch.equal(out, want) for pair in pairs
                    for out, want in zip(pair, (outputs[0], plain), strict=True)],
        "said": said,
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


def on_accelerators(rank: int, mesh: DeviceMesh, pays: bool) -> dict[str, Any]:
    """Each rank on an accelerator of its own, in parts or not: for whoever has two of them."""
    present = torch.accelerator.current_accelerator()
    assert present is not None
    where = torch.device(present.type, rank)
    torch.accelerator.set_device_index(rank)
    RankRates.pays = property(lambda _: pays)  # type: ignore[assignment, method-assign]
    torch.manual_seed(7)
    model = Wide().requires_grad_(False)
    x = torch.linspace(-1, 1, 2048).reshape(2, 1024).to(where)
    with torch.no_grad():
        expected = copy.deepcopy(model).to(where)(x).cpu()
        with blockswap.swap_blocks(model, {"blocks_to_swap": 20}, device=where, mesh=mesh) as swap:
            before = swap.measured().counters
            outputs = [model(x).cpu() for _ in range(4)]
            after, plan = swap.measured().counters, swap.plan
            report = str(swap.report())
    return {
        "equal": [torch.equal(out, expected) for out in outputs],
        "gathers": after.gathers - before.gathers,
        "copied": after.copied_bytes - before.copied_bytes,
        "slabs": plan.streamed_bytes,
        "report": report,
    }


class _Gathered(TorchDispatchMode):
    """Counts the bytes that gathers bring to this rank."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith("c10d::_allgather_base_"):
            whole, part = args[0], args[1]
            self.nbytes += (whole.numel() - part.numel()) * whole.element_size()
        return func(*args, **(kwargs or {}))


def beside_fsdp(rank: int, mesh: DeviceMesh, schedule: str) -> dict[str, Any]:
    """The same model under FSDP2 with CPU offload, or ours: bytes of a forward and of the host."""
    torch.manual_seed(7)
    x = torch.linspace(-1, 1, 1024).expand(2, 1024)
    model = Wide().requires_grad_(False)
    weights = sum(p.numel() * 4 for p in model.parameters())
    with torch.no_grad():
        expected = model(x)
    dist.barrier()
    before = _pss() - weights
    if schedule == "fsdp":
        policy = CPUOffloadPolicy(pin_memory=False)
        for block in model.blocks:
            fully_shard(block, mesh=mesh, offload_policy=policy)
        fully_shard(model, mesh=mesh, offload_policy=policy)
    else:
        blockswap.swap_blocks(model, {"blocks_to_swap": 24}, device="cpu", mesh=mesh)
    counted = _Gathered()
    with torch.no_grad():
        model(x)
        with counted:
            out = model(x)
    dist.barrier()
    held = _pss() - before
    dist.barrier()
    return {
        "equal": torch.equal(out, expected),
        "gathered": counted.nbytes,
        "host": held,
        "weights": weights,
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
        elif fault == "dies in opening":
            shared_weights.map_segment = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
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


def context_parallel(rank: int, mesh: DeviceMesh, folder: str, cases: Any) -> dict[str, list[bool]]:
    """diffusers' Ulysses or ring over all ranks, beside the unswapped model under the same.

    A case: the model, what is parallel, when it is switched on, args, and whether from a file.
    """
    # diffusers 0.42 divides by the number of accelerators when it sets up, and here is none.
    torch.accelerator.device_count = lambda: 1  # type: ignore[assignment]
    _ring_on_the_cpu()
    found = {}
    for kind, how, swapped, args, stored in cases:
        family = "diffusers" if kind == "diffusers" else "diffusers-vace"
        config = _parallel(how, mesh.size())
        with torch.no_grad():
            alone = _forward(_with_heads(kind), family, rank if config is None else 0)
            plain = _with_heads(kind)
            if config is not None:
                plain.enable_parallelism(config=config)
            unswapped = _forward(plain, family, rank if config is None else 0)
            model = _brought(kind, args, mesh, Path(folder) / kind) if stored else _with_heads(kind)
            if config is not None and swapped == "after" and not stored:
                model.enable_parallelism(config=config)
            if not stored:
                blockswap.swap_blocks(model, args, device="cpu", mesh=mesh)
            if config is not None and (swapped == "before" or stored):
                model.enable_parallelism(config=config)
            again = 2 if config is not None else 1 + rank  # data parallel: as many as each likes
            outputs = [_forward(model, family, rank if config is None else 0) for _ in range(again)]
            model.blockswap.close()
        name = f"{kind}, {how}, {swapped}, {args}, {stored}"
        found[name] = [torch.equal(out, unswapped) for out in outputs]
        if how != "ring":  # which merges chunks in another order
            found[name].append(torch.equal(unswapped, alone))
    return found


def _parallel(how: str, ranks: int) -> Any:
    from diffusers import ContextParallelConfig

    if how == "data":
        return None
    return ContextParallelConfig(**{f"{how}_degree": ranks})


def _forward(model: Any, family: str, prompt: int) -> torch.Tensor:
    """Of one of several prompts."""
    given = inputs(family, torch.device("cpu"))
    given["encoder_hidden_states"] = given["encoder_hidden_states"] * (1 + prompt)
    out: torch.Tensor = model(**given, return_dict=False)[0]
    return out


def _brought(kind: str, args: Any, mesh: DeviceMesh, path: Path) -> Any:
    """The model of a folder that one rank has saved."""
    if mesh.get_rank() == 0:
        _with_heads(kind).save_pretrained(path)
    dist.barrier()
    return blockswap.open_transformer(path, args, device="cpu", mesh=mesh)


def _ring_on_the_cpu() -> None:
    """Ring attention wants the logarithms of the sums, which diffusers does not give on the CPU."""
    from diffusers.models import attention_dispatch

    plain = attention_dispatch._native_attention_forward_op

    def with_sums(ctx: Any, query: Any, key: Any, value: Any, *given: Any, **named: Any) -> Any:
        if len(given) < 6 or not given[5]:
            return plain(ctx, query, key, value, *given, **named)
        turned = [x.permute(0, 2, 1, 3) for x in (query, key, value)]
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, sums = attend(*turned, scale=given[3])
        return out.permute(0, 2, 1, 3), sums.permute(0, 2, 1)

    attention_dispatch._native_attention_forward_op = with_sums


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


def left_alone(rank: int, mesh: DeviceMesh, when: str) -> Any:
    """The rank whose weights are shared is killed after opening or in closing: others go on."""
    model = _given(rank, "mini", "meta")
    here = torch.device("cpu")
    with torch.no_grad():
        expected = forward(fresh("mini"), "mini", here)
        swap = blockswap.swap_blocks(model, {"blocks_to_swap": 3}, device="cpu", mesh=mesh)
        dist.barrier()
        if rank == 0:
            if when == "in closing":
                Streamer.drain = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore
                swap.close()
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


def in_parts(rank: int, mesh: DeviceMesh, device: str) -> list[dict[str, Any]]:
    """Forwards on the simulated accelerator with gathers, for a list, a count and automatic."""
    where = _linked(device)
    found = []
    for family, args in (
        ("mini", {"blocks": "0,2-3", "prefetch_blocks": 1}),
        ("original", {"blocks_to_swap": 4, "prefetch_blocks": 1}),
        ("mini", {"vram_budget": 16 << 10}),
    ):
        with torch.no_grad():
            expected = forward(fresh(family).to(where), family, where)
            model = _given(rank, family, "meta")
            with blockswap.swap_blocks(model, args, device=where, mesh=mesh) as swap:
                outputs = [forward(model, family, where) for _ in range(3)]
                counters, plan = swap.measured().counters, swap.plan
                report = str(swap.report())
        found.append(
            {
                "equal": [torch.equal(out, expected) for out in outputs],
                "copied": counters.copied_bytes / plan.streamed_bytes / 3,
                "gathers": counters.gathers,
                "on_demand": counters.on_demand,
                "planned": plan.copied_bytes_per_forward / plan.streamed_bytes,
                "streamed": len(plan.streamed),
                "said": "copies its part of a streamed block" in report,
                "groups": len(dist.distributed_c10d._world.pg_map),
            }
        )
    return found


def _linked(device: str) -> torch.device:
    """Shared memory is pageable there, so that is the link; gathers go by faster, pinned copies."""
    import sim_group

    where = _device(device, pageable_gb_s=5, h2d_gb_s=100, d2h_gb_s=100)
    sim_group.register()
    return where


def experts(rank: int, mesh: DeviceMesh, device: str, folder: str) -> dict[str, Any]:
    """Two experts in turn, from memory and from files; the weights once, the slots shared."""
    from expert_pair import expected, expert, write_experts

    where = _device("cpu") if device == "cpu" else _linked(device)
    args = {"blocks_to_swap": 4, "prefetch_blocks": 1}
    if rank == 0:
        write_experts(Path(folder), "mini")
    dist.barrier()
    paths = [Path(folder) / f"mini-{number}.safetensors" for number in range(2)]
    found: dict[str, Any] = {}
    for source in ("memory", "file"):
        if source == "memory":
            models: Any = [expert(number, "mini") for number in range(2)]
            blockswap.swap_experts(models, args, device=where, mesh=mesh)
        else:
            models = blockswap.open_experts(
                paths, args, device=where, mesh=mesh, skeletons=[skeleton("mini") for _ in paths]
            )
        equal = []
        with torch.no_grad():
            for number in (0, 0, 1, 1, 0, 1):
                out = forward(models[number], "mini", where)
                equal.append(torch.equal(out, expected(number, "mini", where)))
        counters = [model.blockswap.measured().counters for model in models]
        plans = [model.blockswap.plan for model in models]
        found[source] = {
            "equal": equal,
            "gathers": [c.gathers for c in counters],
            "copied": [c.copied_bytes for c in counters],
            "planned": [plan.copied_bytes_per_forward for plan in plans],
            "slabs": [plan.streamed_bytes for plan in plans],
            "said": [s for c in models for s in c.blockswap.measured().sentences if "brings" in s],
        }
        for model in models:
            model.blockswap.close()
    return found


def apart(rank: int, mesh: DeviceMesh) -> dict[str, Any]:
    """Ranks that do not do the same: how each goes on, what it says, how long it waited."""
    where = _linked("sim-eager")
    companions.GATHER_SECONDS = 2.0
    with torch.no_grad():
        expected = forward(fresh("mini").to(where), "mini", where)
    found = {}
    for what in ("another order", "one forward less", "closes", "is killed"):
        model = _given(rank, "mini", "meta")
        with torch.no_grad(), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            swap = blockswap.swap_blocks(model, {"blocks_to_swap": 5}, device=where, mesh=mesh)
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
    elif what == "closes":
        swap.close()
    elif what == "is killed":
        model.blocks[1].register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        forward(model, "mini", where)


def two_hosts(rank: int, mesh: DeviceMesh) -> dict[str, Any]:
    """Two ranks a host; the first of each has the weights: who shares with whom, and equality."""
    here = torch.device("cpu")
    with torch.no_grad():
        expected = forward(fresh("mini"), "mini", here)
        model = _given(rank % 2, "mini", "meta")
        with blockswap.swap_blocks(model, {"blocks_to_swap": 3}, device="cpu", mesh=mesh) as swap:
            outputs = [forward(model, "mini", here) for _ in range(2)]
            sentences = swap.measured().sentences
    maps = Path("/proc/self/maps").read_text().splitlines()
    segments = {line.split()[4] for line in maps if "blockswap weights" in line}
    return {
        "equal": [torch.equal(out, expected) for out in outputs],
        "said": [s for s in sentences if "for the 2 ranks of this host" in s],
        "segments": sorted(segments),
        "host": group.ranks_of(mesh).neighbours,
    }


def _main() -> None:
    faulthandler.dump_traceback_later(100, exit=True)
    rank, count, folder, scenario, options = json.loads(sys.argv[1])
    store = folder if "://" in folder else f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    mesh = init_device_mesh("cpu", (count,))
    value = globals()[scenario](rank, mesh, **options)
    sys.stdout.write("\n" + json.dumps(value) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the group may lack ranks by now: nobody waits for them


if __name__ == "__main__":
    _main()
