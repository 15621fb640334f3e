"""Linears of the stand-in's own: scales as plain attributes, LoRAs as buffers, weights of bytes."""

from typing import Any

import torch
from torch import nn


class GGUFParameter(nn.Parameter):
    """Bytes that know how they are quantised; one way here: a byte b is (b - 128) / 64."""

    def __new__(cls, data: Any, requires_grad: bool = False, quant_type: Any = None) -> Any:
        made = torch.Tensor._make_subclass(cls, data, requires_grad)
        made.quant_type = quant_type
        return made

    def as_tensor(self) -> torch.Tensor:
        return torch.Tensor._make_subclass(torch.Tensor, self, self.requires_grad)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if type(result) is torch.Tensor or isinstance(result, GGUFParameter):
            quant_type = next((a.quant_type for a in args if isinstance(a, GGUFParameter)), None)
            return cls(result, quant_type=quant_type)
        return result


class CustomLinear(nn.Linear):
    def __init__(self, in_features: int, out_features: int, scale_weight: Any = None) -> None:
        super().__init__(in_features, out_features, device="meta")
        self.requires_grad_(False)
        self.register_buffer("_step", torch.zeros((), dtype=torch.long))
        self.scale_weight = scale_weight
        self.lora_diffs: list[tuple[str, str]] = []

    def set_lora_diffs(self, diffs: Any, device: torch.device) -> None:
        self.lora_diffs = []
        for number, (up, down) in enumerate(diffs):
            names = (f"lora_diff_{number}_0", f"lora_diff_{number}_1")
            self.register_buffer(names[0], up.to(device))
            self.register_buffer(names[1], down.to(device))
            self.lora_diffs.append(names)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight: Any = self.weight
        if hasattr(weight, "quant_type"):
            assert weight.quant_type == "byte"
            weight = ((weight.as_tensor().float() - 128) / 64).to(x.dtype)
        weight = weight.to(x)
        if self.scale_weight is not None:
            weight = weight * self.scale_weight
        for up, down in self.lora_diffs:
            if hasattr(self, up):
                weight = weight + getattr(self, up) @ getattr(self, down)
        return nn.functional.linear(x, weight, self.bias.to(x))


def _replace_linear(model: nn.Module, scales: dict[str, torch.Tensor], prefix: str = "") -> None:
    for name, child in model.named_children():
        path = f"{prefix}{name}."
        _replace_linear(child, scales, path)
        if type(child) is nn.Linear and "blocks." in path:
            scale = scales.get(path + "scale_weight")
            model._modules[name] = CustomLinear(child.in_features, child.out_features, scale)


def set_lora_params(module: nn.Module, patches: dict[str, Any]) -> None:
    remove_lora_from_module(module)
    for name, part in module.named_modules():
        if isinstance(part, CustomLinear):
            found = patches.get(f"{name.replace('_orig_mod.', '')}.weight", [])
            part.set_lora_diffs(found, part.bias.device)


def remove_lora_from_module(module: nn.Module) -> None:
    for part in module.modules():
        for name in [n for pair in getattr(part, "lora_diffs", ()) for n in pair]:
            if hasattr(part, name):
                delattr(part, name)
