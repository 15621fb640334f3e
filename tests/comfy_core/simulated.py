"""ComfyUI's memory management pointed at the simulated accelerator."""

import gc
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import comfy.model_base
import comfy.model_management as management
import pytest
import torch

from blockswap.nodes.in_pieces import piece_size
from blockswap.plan.inputs.margin import NO_MARGIN


def point_at(device: torch.device, patch: pytest.MonkeyPatch) -> None:
    """Makes `device` the one ComfyUI computes on, with the memory that it says is free."""

    def free(where: Any = None, torch_free_too: bool = False) -> Any:
        if where is not None and torch.device(where).type == "cpu":
            nbytes = 1 << 34
        else:
            # As ComfyUI counts it on CUDA: what torch keeps for later is free, too.
            kept = torch.accelerator.memory_reserved() - torch.accelerator.memory_allocated()
            nbytes = torch.accelerator.get_memory_info(device)[0] + kept
        return (nbytes, 0) if torch_free_too else nbytes

    patch.setattr(management, "get_torch_device", lambda: device)
    patch.setattr(management, "get_free_memory", free)
    patch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    patch.setattr(management, "cpu_state", management.CPUState.GPU)
    patch.setattr(
        management, "soft_empty_cache", lambda force=False: torch.accelerator.empty_cache()
    )
    # Activations of a tiny model: the real floor is 0.8 GiB and more.
    patch.setattr(management, "minimum_inference_memory", lambda: SMALL_INFERENCE)
    patch.setattr(management, "EXTRA_RESERVED_VRAM", 0)
    # Newer cores ask CUDA about a device that is no CPU; older ones have no such question.
    patch.setattr(management, "lora_compute_dtype", lambda _: torch.float16, raising=False)
    patch.setattr(management, "unet_dtype", _dtype)
    patch.setattr(management, "unet_manual_cast", lambda *_, **__: None)


SMALL_INFERENCE = 1 << 20


def _dtype(*_: Any, weight_dtype: Any = None, **__: Any) -> torch.dtype:
    quantised = weight_dtype is None or weight_dtype.itemsize == 1
    return torch.bfloat16 if quantised else weight_dtype


def computing_on(device: torch.device, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a fixture yields from: ComfyUI computes on `device`, with little for activations."""
    point_at(device, patch)
    patch.setattr(comfy.model_base.BaseModel, "memory_required", lambda *_, **__: 1 << 18)
    yield
    management.unload_all_models()


def cutting_small(device: torch.device, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same, and clips of a tiny model are cut in pieces, beside no margin."""
    for place in ("blockswap.nodes.in_pieces.piece_size", "blockswap.pieces.install"):
        patch.setattr(f"{place}.sizes_below", _small_sizes)
    patch.setattr(piece_size, "MARGIN", NO_MARGIN)
    patch.setattr(piece_size, "KERNELS", "portable")
    yield from computing_on(device, patch)


def _small_sizes(tokens: int) -> tuple[int, ...]:
    """In the place of the sizes for real models."""
    return tuple(size for size in (256, 128) if size < tokens)


def on_simulated(
    request: pytest.FixtureRequest, patch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    """The same on the simulated accelerator, which raises at a race."""
    sim = request.getfixturevalue("sim_module")
    sim.configure(mode="eager", races="raise", poison=True)
    sim.reset()
    where = torch.device("sim", 0)
    for _ in computing_on(where, patch):
        yield where
    assert sim.races() == []


def limit(sim: ModuleType, request: pytest.FixtureRequest, nbytes: int) -> None:
    """From now on the device has room for so many bytes beside what is on it."""
    gc.collect()
    torch.accelerator.empty_cache()
    mode = request.node.callspec.params["sim_device"].removeprefix("sim-")
    sim.configure(capacity=sim.counters().device_bytes + nbytes, mode=mode)
