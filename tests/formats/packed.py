"""Weights in every format, and what the package that the format is of makes of them again.

Each `Packer` takes a weight (fp32) and a compute dtype; it returns what stands in a file for it, by
the end of its name, and the reference: dequantised by the format's own package, never by ours.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch
from comfy_kitchen.backends.eager import quantization as kitchen

Parts = dict[str, torch.Tensor]
Packed = tuple[Parts, torch.Tensor]
# Where the scales of a block of this type are: fp16 numbers at these bytes.
GGUF_SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip


@dataclass(frozen=True)
class Format:
    """`pack(weight, compute dtype)`; `marks` stand once in the file."""

    pack: Callable[[torch.Tensor, torch.dtype], Packed]
    marks: Callable[[], Parts] = dict


def _fp8(weight: torch.Tensor, scale: torch.Tensor, dtype: Any = torch.float8_e4m3fn) -> Any:
    return (weight / scale).to(dtype)


def _plain(weight: torch.Tensor, dtype: torch.dtype) -> Packed:
    stored = weight.to(torch.float8_e5m2)
    return {"weight": stored}, stored.to(dtype)


def _scaled(name: str, of: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Scales as ComfyUI takes them."""

    def pack(weight: torch.Tensor, dtype: torch.dtype) -> Packed:
        scale = of(weight)
        stored = _fp8(weight, scale if scale.dim() != 1 or scale.numel() == 1 else scale[:, None])
        apart = scale[:, None] if scale.dim() == 1 and scale.numel() > 1 else scale
        reference = kitchen.dequantize_per_tensor_fp8(stored, apart, dtype)
        parts = {"weight": stored, name: scale}
        if name == "scale_weight":
            parts["scale_input"] = torch.full((), 0.5)
        return parts, reference

    return pack


def _whole(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().max() / 448


def _rows(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().amax(1, keepdim=True) / 448


def _grouped(weight: torch.Tensor, dtype: torch.dtype) -> Packed:
    """As musubi-tuner writes and reads it: in the scale's dtype."""
    groups = weight.view(weight.shape[0], -1, 16)
    scale = (groups.abs().amax(2, keepdim=True) / 448).to(torch.bfloat16)
    stored = _fp8(groups, scale).view(weight.shape)
    product = stored.to(scale.dtype).view(groups.shape) * scale
    return {"weight": stored, "scale_weight": scale}, product.view(weight.shape).to(dtype)


def _blocks(weight: torch.Tensor, dtype: torch.dtype) -> Packed:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    rows, columns = weight.shape
    tiles = weight.view(rows // 128, 128, columns // 128, 128)
    scale = tiles.abs().amax((1, 3)) / 448
    stored = _fp8(tiles, scale[:, None, :, None]).view(weight.shape)
    reference = Fp8Dequantize(None)._dequantize_one(stored, scale, dtype)
    return {"weight": stored, "weight_scale_inv": scale}, reference


def word(**said: Any) -> torch.Tensor:
    """What ComfyUI writes beside a layer."""
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


def _told_fp8(weight: torch.Tensor, dtype: torch.dtype) -> Packed:
    parts, reference = _scaled("weight_scale", _whole)(weight, dtype)
    return parts | {
        "comfy_quant": word(format="float8_e4m3fn"),
        "input_scale": torch.ones(()),
    }, reference


def _int8(weight: torch.Tensor, dtype: torch.dtype) -> Packed:
    stored, scale = kitchen.quantize_int8_rowwise(weight)
    said = word(format="int8_tensorwise")
    parts = {"weight": stored, "weight_scale": scale, "comfy_quant": said}
    return parts, kitchen.dequantize_int8_simple(stored, scale).to(dtype)


def _rotated(weight: torch.Tensor, dtype: torch.dtype) -> Packed:
    stored, scale = kitchen.quantize_int8_convrot_weight(weight, 64)
    said = word(format="int8_tensorwise", convrot=True, convrot_groupsize=64)
    parts = {"weight": stored, "weight_scale": scale, "comfy_quant": said}
    return parts, kitchen.dequantize_int8_convrot_weight(stored, scale, 64).to(dtype)


def _mxfp8(weight: torch.Tensor, dtype: torch.dtype) -> Packed:
    stored, scale = kitchen.quantize_mxfp8(weight)
    reference = kitchen.dequantize_mxfp8(stored, scale, dtype)
    said = word(format="mxfp8")
    return {"weight": stored, "weight_scale": scale, "comfy_quant": said}, reference


def _nvfp4(weight: torch.Tensor, dtype: torch.dtype) -> Packed:
    whole = weight.abs().max() / (448 * 6)
    stored, scale = kitchen.quantize_nvfp4(weight, whole)
    reference = kitchen.dequantize_nvfp4(stored, whole, scale, dtype)
    parts = {"weight": stored, "weight_scale": scale.view(torch.uint8), "weight_scale_2": whole}
    return parts | {"comfy_quant": word(format="nvfp4")}, reference


def _quanto(weight: torch.Tensor, dtype: torch.dtype) -> Packed:
    """As `QBytesDequantizer` of optimum-quanto 0.2 multiplies."""
    scale = (weight.abs().amax(1, keepdim=True) / 127).to(torch.bfloat16)
    stored = (weight / scale).round().clamp(-127, 127).to(torch.int8)
    one = torch.ones(())
    parts = {
        "weight._data": stored,
        "weight._scale": scale,
        "input_scale": one,
        "output_scale": one,
    }
    return parts, (scale * stored).to(dtype)


def gguf_blocks(kind: str, weight: torch.Tensor) -> np.ndarray:
    """Rows of blocks: quantised by the package where it can, else random bits under fit scales."""
    type_ = gguf.GGMLQuantizationType[kind]
    try:
        return gguf.quants.quantize(weight.numpy(), type_)
    except NotImplementedError:
        block, nbytes = gguf.GGML_QUANT_SIZES[type_]
        rows, columns = weight.shape
        draw = np.random.default_rng(weight.numel())
        raw = draw.integers(0, 256, (rows, columns // block, nbytes), dtype=np.uint8)
        for at in GGUF_SCALES[kind]:
            raw[..., at : at + 2] = np.float16([1.0]).view(np.uint8)
        most = np.abs(gguf.quants.dequantize(raw.reshape(rows, -1), type_)).max()
        for at in GGUF_SCALES[kind]:
            scales = (draw.random((rows, columns // block, 1)) * 0.3 / most).astype(np.float16)
            raw[..., at : at + 2] = scales.view(np.uint8)
        return raw.reshape(rows, -1)


def _empty_mark() -> Parts:
    return {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}


FORMATS = {
    "fp8": Format(_plain),
    "fp8-scale_weight": Format(_scaled("scale_weight", _whole), _empty_mark),
    "fp8-weight_scale-1": Format(_scaled("weight_scale", lambda w: _whole(w).view(1))),
    "fp8-scale-rows": Format(_scaled("scale", _rows)),
    "fp8-rows-flat": Format(_scaled("weight_scale", lambda w: _rows(w).flatten())),
    "fp8-groups": Format(_grouped, _empty_mark),
    "fp8-blocks": Format(_blocks),
    "comfy-fp8": Format(_told_fp8),
    "comfy-int8": Format(_int8),
    "comfy-int8-rotated": Format(_rotated),
    "comfy-mxfp8": Format(_mxfp8),
    "comfy-nvfp4": Format(_nvfp4),
    "quanto-int8": Format(_quanto),
}
GGUF_KINDS = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS", "Q4_1", "Q5_1",
              "Q3_K", "Q2_K")  # fmt: skip
