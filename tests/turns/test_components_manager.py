"""A modular pipeline of diffusers whose ComponentsManager asks us who leaves, who is streamed."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_families import built

from blockswap import BlockSwapStrategy

MIB = 2**20


def modular(manager: Any) -> Any:
    """Wan's text-to-video as blocks, with the parts of the tiny pipeline."""
    from diffusers.guiders import ClassifierFreeGuidance
    from diffusers.modular_pipelines.wan.modular_blocks_wan import WanBlocks

    parts = built("wan").components
    pipe = WanBlocks().init_pipeline(components_manager=manager)
    names = ("text_encoder", "tokenizer", "vae", "scheduler", "transformer")
    given = {name: parts[name] for name in names}
    pipe.update_components(**given, guider=ClassifierFreeGuidance(guidance_scale=3.0))
    return pipe


def made(pipe: Any) -> torch.Tensor:
    out = pipe(
        prompt="a red ball",
        negative_prompt="blurry",
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=2,
        max_sequence_length=64,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
        output="videos",
    )
    return torch.as_tensor(out[0]).cpu()


@pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
def test_a_modular_pipeline(sim_device: torch.device, limit: Callable[[int | None], None]) -> None:
    from diffusers import ComponentsManager

    pipe = modular(None)
    pipe.to(sim_device)
    expected = made(pipe)
    del pipe
    gc.collect()
    manager = ComponentsManager()
    pipe, budget = modular(manager), 14 * MIB
    limit(budget)
    strategy = BlockSwapStrategy(budget, reserve="7MiB")
    manager.enable_auto_cpu_offload(device=sim_device, offload_strategy=strategy)
    held = torch.accelerator.memory_allocated()
    torch.accelerator.reset_peak_memory_stats()
    assert torch.equal(made(pipe), expected)
    assert torch.equal(made(pipe), expected)
    assert strategy.streamed == {"transformer": 2}
    assert torch.accelerator.max_memory_allocated() - held <= budget
    strategy.close()
    manager.disable_auto_cpu_offload()
    limit(None)
    assert torch.equal(made(pipe.to(sim_device)), expected)
