"""The stand-in's functions that start and end a run, in the order of calls of the real ones."""

from typing import Any

import torch

from .custom_linear import GGUFParameter, remove_lora_from_module
from .devices import device, offload_device


def init_blockswap(transformer: Any, block_swap_args: Any, model: Any) -> None:
    if not transformer.patched_linear:
        if block_swap_args is not None:
            for name, param in transformer.named_parameters():
                if "block" not in name:
                    param.data = param.data.to(device)
            transformer.block_swap(
                block_swap_args["blocks_to_swap"] - 1,
                block_swap_args["offload_txt_emb"],
                block_swap_args["offload_img_emb"],
                vace_blocks_to_swap=block_swap_args.get("vace_blocks_to_swap", None),
            )
        else:
            transformer.to(device)


def offload_transformer(transformer: Any, remove_lora: bool = True) -> None:
    if transformer.patched_linear:
        for name, param in list(transformer.named_parameters()):
            owner, _, last = name.rpartition(".")
            module = transformer.get_submodule(owner)
            empty = torch.empty(0, dtype=param.dtype) if isinstance(param, GGUFParameter) else None
            gone = torch.empty_like(param.data, device="meta") if empty is None else empty
            setattr(module, last, torch.nn.Parameter(gone, requires_grad=False))
        if remove_lora:
            remove_lora_from_module(transformer)
    else:
        transformer.to(offload_device)
    for block in transformer.blocks:
        block.kv_cache = None
