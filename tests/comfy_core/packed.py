"""A stand-in for the pack that loads GGUF models, with its manners and one packed type of its own.

A packed tensor is an array of bytes that tells another shape, calls itself its own clone, and keeps
patches (LoRA) as notes; its layers unpack and patch it at each use. Rows are int8 behind a scale.
"""

from typing import Any

import comfy.lora
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch


class GGMLTensor(torch.Tensor):
    """`[rows, 4 + columns]` bytes of a weight `[rows, columns]`."""

    tensor_shape: torch.Size
    patches: list[Any]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        made: Any = super().to(*args, **kwargs)
        made.tensor_shape, made.patches = self.tensor_shape, list(self.patches)
        return made

    def clone(self, *_: Any, **__: Any) -> Any:
        return self

    def detach(self) -> Any:
        return self

    @property
    def shape(self) -> Any:
        return vars(self).get("tensor_shape", self.size())


def pack(weight: torch.Tensor) -> GGMLTensor:
    scale = (weight.float().abs().amax(1, keepdim=True) / 127).clamp(min=1e-8)
    rows = (weight.float() / scale).round().to(torch.int8)
    made: Any = torch.cat([scale.view(torch.uint8), rows.view(torch.uint8)], 1)
    made = made.as_subclass(GGMLTensor)
    made.tensor_shape, made.patches = weight.shape, []
    return made


class Ops(comfy.ops.manual_cast):
    class Linear(comfy.ops.manual_cast.Linear):
        comfy_cast_weights = True

        def _load_from_state_dict(self, state: Any, prefix: str, *others: Any) -> None:
            weight = state.get(f"{prefix}weight")
            if not isinstance(weight, GGMLTensor):
                super()._load_from_state_dict(state, prefix, *others)
                return
            self.weight = torch.nn.Parameter(weight, requires_grad=False)
            self.bias = torch.nn.Parameter(state[f"{prefix}bias"], requires_grad=False)

        def forward_comfy_cast_weights(self, input: torch.Tensor) -> torch.Tensor:
            packed: Any = self.weight
            if not isinstance(packed, GGMLTensor):
                return super().forward_comfy_cast_weights(input)
            data = packed.to(input.device).as_subclass(torch.Tensor)
            scale, rows = data[:, :4].contiguous().view(torch.float32), data[:, 4:].contiguous()
            weight = (rows.view(torch.int8).float() * scale).to(input.dtype)
            for patches, key in packed.patches:
                weight = comfy.lora.calculate_weight(patches, weight, key)
            bias = self.bias.to(input.device, input.dtype)
            return torch.nn.functional.linear(input, weight, bias)


class GGUFModelPatcher(comfy.model_patcher.ModelPatcher):
    def patch_weight_to_device(
        self, key: str, device_to: Any = None, inplace_update: bool = False, **others: Any
    ) -> Any:
        weight = comfy.utils.get_attr(self.model, key)
        if not isinstance(weight, GGMLTensor):
            return super().patch_weight_to_device(key, device_to, inplace_update, **others)
        if key in self.patches:
            weight = weight.to(device_to)
            weight.patches = [(self.patches[key], key)]
            comfy.utils.set_attr_param(self.model, key, weight)
        return None

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
        if unpatch_weights:
            for parameter in self.model.parameters():
                if isinstance(parameter, GGMLTensor):
                    parameter.patches = []
        return super().unpatch_model(device_to, unpatch_weights)

    def load(self, *args: Any, force_patch_weights: bool = False, **kwargs: Any) -> Any:
        return super().load(*args, force_patch_weights=True, **kwargs)

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        own, self.__class__ = self.__class__, GGUFModelPatcher
        made = super().clone(*args, **kwargs)
        self.__class__ = own
        return made
