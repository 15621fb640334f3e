"""The stand-in's loader: a model made of a seed, and how its weights are placed at each run."""

import copy
from typing import Any

import torch

from .custom_linear import GGUFParameter, _replace_linear
from .devices import device, offload_device
from .wanvideo.modules.model import WanModel


class WanVideoModel:
    """The pack's own model object, which keeps what it needs in a `pipeline`."""

    def __init__(self, transformer: Any) -> None:
        self.diffusion_model = transformer
        self.pipeline: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        return self.pipeline[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.pipeline[key] = value


class Patcher:
    """As ComfyUI's: clones share the model and have options and patches of their own."""

    def __init__(self, model: WanVideoModel) -> None:
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.patches: dict[str, Any] = {}

    def clone(self) -> "Patcher":
        cloned = Patcher(self.model)
        cloned.model_options = copy.deepcopy(self.model_options)
        cloned.patches = dict(self.patches)
        return cloned


def load_weights(transformer, sd=None, transformer_load_device=None, block_swap_args=None) -> None:
    for name, param in list(transformer.named_parameters()):
        if isinstance(param, GGUFParameter):
            continue  # it is there already
        key = name.replace("_orig_mod.", "")
        where = transformer_load_device
        if block_swap_args is not None:
            where = device
            for kind, count in (
                ("blocks", block_swap_args.get("blocks_to_swap", 0)),
                ("vace_blocks", block_swap_args.get("vace_blocks_to_swap", 0)),
            ):
                last = name.startswith(f"{kind}.") and int(name.split(".")[1]) >= (
                    len(getattr(transformer, kind)) - count
                )
                where = offload_device if last else where
        owner, _, last_name = name.rpartition(".")
        value = sd[key].to(where)
        if not isinstance(value, GGUFParameter):
            value = torch.nn.Parameter(value, requires_grad=False)
        transformer.get_submodule(owner)._parameters[last_name] = value


class WanVideoModelLoader:
    RETURN_TYPES = ("WANVIDEOMODEL",)
    FUNCTION = "load"
    CATEGORY = "WanVideoWrapper"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {}, "optional": {"kind": ("STRING", {"default": "plain"})}}

    def load(self, kind: str = "plain") -> tuple:
        """`kind`: plain, vace, merged (no weights are kept), scaled, gguf; any with `managed`."""
        generator = torch.Generator().manual_seed(7)
        transformer: Any = WanModel(vace="vace" in kind).requires_grad_(False)
        weights = {
            key: torch.randn(value.shape, generator=generator) * 0.2
            for key, value in transformer.named_parameters()
        }
        scales: dict[str, torch.Tensor] = {}
        for key in [k for k in weights if "blocks." in k and k.endswith(".weight")]:
            if weights[key].ndim == 2 and "scaled" in kind:
                weights[key] = weights[key].to(torch.float8_e4m3fn)
                scales[key.removesuffix("weight") + "scale_weight"] = torch.tensor(0.5).to(device)
            elif weights[key].ndim == 2 and "gguf" in kind:
                stored = (weights[key] * 64 + 128).round().clamp(0, 255).to(torch.uint8)
                weights[key] = GGUFParameter(stored, quant_type="byte")
        if scales or "gguf" in kind:
            _replace_linear(transformer, scales)
            transformer.patched_linear = True
        model = WanVideoModel(transformer)
        load_weights(transformer, weights, offload_device)
        model["sd"] = None if "merged" in kind else weights
        model["auto_cpu_offload"] = "managed" in kind
        model["gguf_reader"] = "reader" if "gguf" in kind else None
        return (Patcher(model),)
