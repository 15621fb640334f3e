"""Small Wan models, LoRAs and a VAE in the files that ComfyUI opens; every weight random."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from blockswap.layout.geometry import WanGeometry
from blockswap.synth import synth

# dim is a multiple of 128: ComfyUI takes the number of heads from it. Text and image widths are
# those of the encoders.
T2V = WanGeometry(dim=128, ffn_dim=256, num_layers=6, num_heads=1)
I2V = replace(T2V, in_channels=36, image_dim=1280, added_kv=True)
BLOCKS = 6

LINEARS = tuple(
    [f"{attention}_attn.{part}" for attention in ("self", "cross") for part in "qkvo"]
    + ["ffn.0", "ffn.2"]
)
FP8_MAX = 448.0  # the largest float8_e4m3fn


def write_model(path: Path, geometry: WanGeometry, *, seed: int = 0) -> Path:
    """A bf16 checkpoint with the vendor's names."""
    synth(geometry, path, seed=seed)
    return path


def write_fp8_scaled(path: Path, geometry: WanGeometry, *, seed: int = 0) -> Path:
    """As the `*_fp8_scaled` files of Wan 2.2: every linear in fp8, with a scale each.

    The tensor `scaled_fp8` says so; its two elements ask for the matrix product to be computed in
    the wider type.
    """
    tensors = _tensors(path, geometry, seed)
    linears = [key for key, tensor in tensors.items() if tensor.dim() == 2]
    for key in linears:
        scale_key = key.removesuffix("weight") + "scale_weight"
        tensors[key], tensors[scale_key] = _quantised(tensors[key])
    tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(tensors, path)
    return path


def write_fp8_tensors(path: Path, geometry: WanGeometry, *, seed: int = 0) -> Path:
    """As newer quantised files: the header lists each quantised layer, which ComfyUI makes into
    its `QuantizedTensor`."""
    tensors = _tensors(path, geometry, seed)
    layers = {}
    for layer in _block_linears(geometry):
        weight, scale = _quantised(tensors[f"{layer}.weight"])
        tensors[f"{layer}.weight"], tensors[f"{layer}.weight_scale"] = weight, scale
        layers[layer] = {"format": "float8_e4m3fn"}
    note = json.dumps({"format_version": "1.0", "layers": layers})
    save_file(tensors, path, metadata={"_quantization_metadata": note})
    return path


def write_gguf(path: Path, weights: Mapping[str, torch.Tensor], kind: str = "Q8_0") -> Path:
    """As GGUF files of Wan are: linears of blocks in a block type, the rest in fp32."""
    writer = gguf.GGUFWriter(path, "wan")
    for key, value in weights.items():
        array = value.float().numpy()
        inside = "blocks." in key and key.endswith(".weight") and value.ndim == 2
        quant = gguf.GGMLQuantizationType[kind if inside else "F32"]
        if value.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{key}", [int(n) for n in value.shape])
            array = array.reshape(value.shape[0] * value.shape[1], *value.shape[2:])
        if quant == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(key, array.astype(np.float32))
        else:
            writer.add_tensor(key, gguf.quantize(array, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_gguf_of(path: Path, geometry: WanGeometry, *, seed: int = 0) -> Path:
    """A GGUF file of the geometry, packed in Q8_0."""
    return write_gguf(path, _tensors(path, geometry, seed))


def write_lora(path: Path, geometry: WanGeometry, *, seed: int = 0, rank: int = 4) -> Path:
    """A LoRA on every linear of every block, in the names of ComfyUI's own Wan templates."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in _block_linears(geometry):
        inputs, outputs = _shape_of(layer, geometry)
        down = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        up = torch.randn(outputs, rank, generator=generator) / rank**0.5
        name = f"diffusion_model.{layer}"
        tensors[f"{name}.lora_A.weight"] = down.to(torch.bfloat16)
        tensors[f"{name}.lora_B.weight"] = up.to(torch.bfloat16)
    save_file(tensors, path)
    return path


def _tensors(path: Path, geometry: WanGeometry, seed: int) -> dict[str, torch.Tensor]:
    plain = path.with_name(f"plain.{path.stem}.safetensors")
    synth(geometry, plain, seed=seed)
    tensors = load_file(plain)
    plain.unlink()
    return tensors


def _block_linears(geometry: WanGeometry) -> list[str]:
    return [f"blocks.{index}.{name}" for index in range(geometry.num_layers) for name in LINEARS]


def _shape_of(layer: str, geometry: WanGeometry) -> tuple[int, int]:
    if layer.endswith("ffn.0"):
        return geometry.dim, geometry.ffn_dim
    if layer.endswith("ffn.2"):
        return geometry.ffn_dim, geometry.dim
    return geometry.dim, geometry.dim


def _quantised(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = weight.float()
    scale = wide.abs().amax() / FP8_MAX
    return (wide / scale).to(torch.float8_e4m3fn), scale
