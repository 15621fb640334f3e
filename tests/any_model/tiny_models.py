"""Every transformer class that diffusers exports, small; which cannot do everything, and why."""

import functools
import warnings

import pytest
import torch
from drawing import Tiny, drawn
from tiny_images import IMAGES
from tiny_more_images import MORE_IMAGES
from tiny_more_videos import MORE_VIDEOS
from tiny_videos import VIDEOS
from torch.utils._pytree import tree_leaves

TINY: dict[str, Tiny] = {**IMAGES, **MORE_IMAGES, **VIDEOS, **MORE_VIDEOS}

# torch has no flex attention for the simulated accelerator, swapped or not.
CPU_ONLY = {"AnyFlowFARTransformer3DModel", "Kandinsky6SRTransformer3DModel"}
# The block with a part that the model's own forward computes with, outside the run of the block.
REACHED_INTO = {"DiTTransformer2DModel": 0}


def exported() -> list[str]:
    """The names of the transformer classes that the installed diffusers exports."""
    import diffusers

    names = [name for name in dir(diffusers) if "Transformer" in name and name.endswith("Model")]
    return sorted(names)


def transformer_class(name: str) -> type[torch.nn.Module]:
    import diffusers

    return getattr(diffusers, name)


@functools.cache
def _master(name: str) -> torch.nn.Module:
    """Weights are drawn anew: what a class starts as zeros would hide what its blocks do."""
    torch.manual_seed(11)
    model = transformer_class(name)(**TINY[name].config).eval()
    draw = torch.Generator().manual_seed(12)
    for parameter in model.parameters():
        if not parameter.any() and parameter.is_floating_point():
            parameter.data.normal_(0.0, 0.05, generator=draw)
    return model


def build(name: str) -> torch.nn.Module:
    """A model on the CPU that the test may do anything to; equal weights every time.

    Its weights do not require grad, as those of a slot: torch takes another matrix product for some
    inputs where they do, and rounds otherwise.
    """
    model = transformer_class(name)(**TINY[name].config).eval().requires_grad_(False)
    model.load_state_dict(_master(name).state_dict())
    for (_, mine), (_, theirs) in zip(
        model.named_buffers(), _master(name).named_buffers(), strict=True
    ):
        mine.data.copy_(theirs)
    return model


def outputs(model: torch.nn.Module, name: str, device: torch.device) -> list[torch.Tensor]:
    """Everything that two forwards return."""
    found: list[torch.Tensor] = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in (1, 2):
            out = model(**drawn(TINY[name].inputs, device, seed=seed), return_dict=False)
            found += [one.cpu() for one in tree_leaves(out) if isinstance(one, torch.Tensor)]
    return found


def device_bytes(device: torch.device, request: pytest.FixtureRequest) -> int:
    """What the simulated accelerator holds at this moment; nothing of the CPU is counted."""
    if device.type == "cpu":
        return 0
    return int(request.getfixturevalue("sim_module").counters().device_bytes)
