"""The pack's loader node, and what it works with."""

from typing import Any

import comfy.float
import comfy.lora
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import gguf
import torch

Q8_0 = gguf.GGMLQuantizationType.Q8_0
_PREFIX = "model.diffusion_model."
_PLAIN = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)


class GGMLTensor(torch.Tensor):
    """The bytes of a weight, `[rows, 34 * columns / 32]`, or its numbers where it is not packed."""

    tensor_type: Any
    tensor_shape: torch.Size
    patches: list[Any]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        made: Any = super().to(*args, **kwargs)
        made.tensor_type = getattr(self, "tensor_type", None)
        made.tensor_shape = getattr(self, "tensor_shape", made.size())
        made.patches = list(getattr(self, "patches", []))
        return made

    def clone(self, *_: Any, **__: Any) -> Any:
        return self

    def detach(self) -> Any:
        return self

    @property
    def shape(self) -> Any:
        return vars(self).get("tensor_shape", self.size())


def is_packed(tensor: Any) -> bool:
    return getattr(tensor, "tensor_type", None) == Q8_0


def gguf_sd_loader(path: str) -> dict[str, Any]:
    reader = gguf.GGUFReader(path)
    if bytes(reader.fields["general.architecture"].parts[-1]) != b"wan":
        raise ValueError("Unexpected architecture type in GGUF file")
    found = {}
    for tensor in reader.tensors:
        data: Any = torch.from_numpy(tensor.data)
        shape = torch.Size(int(n) for n in reversed(tensor.shape))
        field = reader.get_field(f"comfy.gguf.orig_shape.{tensor.name}")
        if field is not None:
            shape = torch.Size(int(field.parts[at][0]) for at in field.data)
        if tensor.tensor_type in _PLAIN:
            data = data.view(*shape)
        made: Any = data.as_subclass(GGMLTensor)
        made.tensor_type, made.tensor_shape, made.patches = tensor.tensor_type, shape, []
        found[tensor.name.removeprefix(_PREFIX)] = made
    return found


def unpacked(tensor: Any, dtype: torch.dtype) -> torch.Tensor:
    """A weight of its own numbers, patched; Q8_0 is a scale in fp16 before 32 bytes."""
    data = tensor.as_subclass(torch.Tensor)
    if is_packed(tensor):
        blocks = data.reshape(-1, 34)
        scale = blocks[:, :2].contiguous().view(torch.float16).float()
        data = (scale * blocks[:, 2:].contiguous().view(torch.int8).float()).reshape(tensor.shape)
    weight = data.to(dtype)
    for patches, key in getattr(tensor, "patches", []):
        weight = comfy.lora.calculate_weight(patches, weight, key)
    return weight


class GGMLOps(comfy.ops.manual_cast):
    class Linear(comfy.ops.manual_cast.Linear):
        comfy_cast_weights = True
        dequant_dtype: Any = None
        patch_dtype: Any = None

        def __init__(
            self, in_features: int, out_features: int, bias: bool = True, device: Any = None,
            dtype: Any = None,
        ) -> None:  # fmt: skip
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features = in_features, out_features
            self.weight: Any = None
            self.bias: Any = None

        def _load_from_state_dict(
            self, state: Any, prefix: str, _: Any, __: Any, missing: Any, unexpected: Any, ___: Any
        ) -> None:
            for key, value in state.items():
                if key[len(prefix) :] in ("weight", "bias"):
                    parameter = torch.nn.Parameter(value, requires_grad=False)
                    setattr(self, key[len(prefix) :], parameter)
                elif key.startswith(prefix):
                    unexpected.append(key)
            if self.weight is None:
                zeros = torch.zeros(self.in_features, self.out_features)
                self.weight = torch.nn.Parameter(zeros, requires_grad=False)
                missing.append(f"{prefix}weight")

        def forward_comfy_cast_weights(self, input: torch.Tensor) -> torch.Tensor:
            if not is_packed(self.weight):
                made = super().forward_comfy_cast_weights(input)
                return made.as_subclass(torch.Tensor)
            weight = unpacked(self.weight.to(input.device), input.dtype)
            bias = self.bias
            if bias is not None:
                bias = unpacked(bias.to(input.device), input.dtype)
            return torch.nn.functional.linear(input, weight, bias)


class GGUFModelPatcher(comfy.model_patcher.ModelPatcher):
    patch_on_device: Any = False
    mmap_released = False

    def patch_weight_to_device(
        self, key: str, device_to: Any = None, inplace_update: bool = False
    ) -> Any:
        if key not in self.patches:
            return
        weight, patches = comfy.utils.get_attr(self.model, key), self.patches[key]
        if is_packed(weight):
            weight = weight.to(device_to)
            weight.patches = [(patches, key)]
        else:
            if key not in self.backup:
                kept: Any = type("Backup", (), {})()
                kept.weight, kept.inplace_update = weight.to(self.offload_device), False
                self.backup[key] = kept
            full = weight.to(device_to or weight.device, torch.float32, copy=True)
            full = comfy.lora.calculate_weight(patches, full, key)
            weight = comfy.float.stochastic_rounding(full, weight.dtype)
        comfy.utils.set_attr_param(self.model, key, weight)

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
        if unpatch_weights:
            for parameter in self.model.parameters():
                if is_packed(parameter):
                    parameter.patches = []
        return super().unpatch_model(device_to, unpatch_weights)

    def load(self, *args: Any, force_patch_weights: bool = False, **kwargs: Any) -> Any:
        return super().load(*args, force_patch_weights=True, **kwargs)

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        own, self.__class__ = self.__class__, GGUFModelPatcher
        made = super().clone(*args, **kwargs)
        self.__class__ = own
        return made


class UnetLoaderGGUF:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_unet"
    CATEGORY = "stand-in"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"unet_name": ("STRING", {})}}

    def load_unet(self, unet_name: str) -> Any:
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        options = {"custom_operations": GGMLOps()}
        plain = comfy.sd.load_diffusion_model_state_dict(gguf_sd_loader(path), options)
        return (GGUFModelPatcher.clone(plain),)
