"""The stand-in's sampler: arguments onto the transformer, weights, start, steps, end."""

import copy
import json
from typing import Any

import torch

from .custom_linear import _replace_linear, remove_lora_from_module, set_lora_params
from .devices import device
from .nodes_model_loading import load_weights
from .utils import init_blockswap, offload_transformer
from .wanvideo.modules.model import DIM

SETTINGS = {
    "use_non_blocking": False,
    "blocks_to_swap": 0,
    "vace_blocks_to_swap": 0,
    "prefetch_blocks": 0,
    "block_swap_debug": False,
    "offload_img_emb": False,
    "offload_txt_emb": False,
}


def sample(
    patcher: Any, *, steps: int = 2, force_offload: bool = True, windows: int = 1,
    compiled: bool = False,
) -> torch.Tensor:  # fmt: skip
    """The latents of a run; `windows` of them reload the weights in between, as long videos do."""
    model = patcher.model
    transformer = model.diffusion_model
    block_swap_args = _prepare(patcher)
    if compiled:
        for number, block in enumerate(transformer.blocks):
            inner = getattr(block, "_orig_mod", block)
            transformer.blocks[number] = torch.compile(inner, backend="eager")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 5, DIM, generator=generator).to(device)
    text = torch.randn(1, 5, DIM, generator=generator).to(device)
    context = None if transformer.vace_layers is None else x * 0.5
    init_blockswap(transformer, block_swap_args, model)
    try:
        for window in range(windows):
            if window:
                offload_transformer(transformer, remove_lora=False)
                if transformer.patched_linear:
                    load_weights(transformer, model["sd"], device, block_swap_args)
                init_blockswap(transformer, block_swap_args, model)
            for _ in range(steps):
                x = x - 0.1 * transformer(x, text, context)
    finally:
        if force_offload:
            offload_transformer(transformer)
    return x.cpu()


def _prepare(patcher: Any) -> Any:
    model = patcher.model
    transformer = model.diffusion_model
    options = copy.deepcopy(patcher.model_options["transformer_options"])
    block_swap_args = options.get("block_swap_args", None)
    if block_swap_args is not None:
        for name, default in SETTINGS.items():
            setattr(transformer, name, block_swap_args.get(name, default))
    if not transformer.patched_linear and model["sd"] is not None and patcher.patches:
        _replace_linear(transformer, {})
        transformer.patched_linear = True
    if model["sd"] is not None:
        load_weights(transformer, model["sd"], device, block_swap_args)
    if patcher.patches:
        set_lora_params(transformer, patcher.patches)
    else:
        remove_lora_from_module(transformer)
    return block_swap_args


class WanVideoSampler:
    RETURN_TYPES = ()
    FUNCTION = "process"
    CATEGORY = "WanVideoWrapper"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("WANVIDEOMODEL",)}}

    def process(self, model) -> dict:
        transformer = model.model.diffusion_model
        transformer.moved.clear()
        asked = model.model_options["transformer_options"].get("block_swap_args")
        latents = sample(model).flatten().tolist()
        told = {"asked": asked, "moved": transformer.moved, "latents": latents}
        return {"ui": {"text": [json.dumps(told)]}}
