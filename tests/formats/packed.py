"""Weights in every format, and what the package that the format is of makes of them again.

The reference is dequantised by the format's own package, never by ours.
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
    """`write(weight)` gives what stands in a file for a weight (fp32), by the end of its name, and
    `read(parts, compute dtype)` what the package makes of it; `marks` stand once in the file."""

    write: Callable[[torch.Tensor], Parts]
    read: Callable[[Parts, torch.dtype], torch.Tensor]
    marks: Callable[[], Parts] = dict

    def pack(self, weight: torch.Tensor, dtype: torch.dtype) -> Packed:
        parts = self.write(weight)
        return parts, self.read(parts, dtype)


def _fp8(weight: torch.Tensor, scale: torch.Tensor, dtype: Any = torch.float8_e4m3fn) -> Any:
    return (weight / scale).to(dtype)


def _cast(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    return parts["weight"].to(dtype)


def _scaled(name: str, of: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Scales as ComfyUI takes them."""

    def apart(scale: torch.Tensor) -> torch.Tensor:
        return scale[:, None] if scale.dim() == 1 and scale.numel() > 1 else scale

    def write(weight: torch.Tensor) -> Parts:
        scale = of(weight)
        parts = {"weight": _fp8(weight, apart(scale)), name: scale}
        return parts | ({"scale_input": torch.full((), 0.5)} if name == "scale_weight" else {})

    def read(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        return kitchen.dequantize_per_tensor_fp8(parts["weight"], apart(parts[name]), dtype)

    return write, read


def _whole(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().max() / 448


def _rows(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().amax(1, keepdim=True) / 448


def _grouped(weight: torch.Tensor) -> Parts:
    """As musubi-tuner writes and reads it: in the scale's dtype."""
    groups = weight.view(weight.shape[0], -1, 16)
    scale = (groups.abs().amax(2, keepdim=True) / 448).to(torch.bfloat16)
    return {"weight": _fp8(groups, scale).view(weight.shape), "scale_weight": scale}


def _read_groups(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    weight, scale = parts["weight"], parts["scale_weight"]
    product = weight.to(scale.dtype).view(weight.shape[0], -1, 16) * scale
    return product.view(weight.shape).to(dtype)


def _blocks(weight: torch.Tensor) -> Parts:
    rows, columns = weight.shape
    tiles = weight.view(rows // 128, 128, columns // 128, 128)
    scale = tiles.abs().amax((1, 3)) / 448
    stored = _fp8(tiles, scale[:, None, :, None]).view(weight.shape)
    return {"weight": stored, "weight_scale_inv": scale}


def _read_blocks(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    made: torch.Tensor = Fp8Dequantize(None)._dequantize_one(
        parts["weight"], parts["weight_scale_inv"], dtype
    )
    return made


def word(**said: Any) -> torch.Tensor:
    """What ComfyUI writes beside a layer."""
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


def _told_fp8(weight: torch.Tensor) -> Parts:
    parts: Parts = _scaled("weight_scale", _whole)[0](weight)
    said = {"comfy_quant": word(format="float8_e4m3fn"), "input_scale": torch.ones(())}
    return parts | said


def _int8(weight: torch.Tensor) -> Parts:
    stored, scale = kitchen.quantize_int8_rowwise(weight)
    said = word(format="int8_tensorwise")
    return {"weight": stored, "weight_scale": scale, "comfy_quant": said}


def _read_int8(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    return kitchen.dequantize_int8_simple(parts["weight"], parts["weight_scale"]).to(dtype)


def _rotated(weight: torch.Tensor) -> Parts:
    stored, scale = kitchen.quantize_int8_convrot_weight(weight, 64)
    said = word(format="int8_tensorwise", convrot=True, convrot_groupsize=64)
    return {"weight": stored, "weight_scale": scale, "comfy_quant": said}


def _read_rotated(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    stored, scale = parts["weight"], parts["weight_scale"]
    return kitchen.dequantize_int8_convrot_weight(stored, scale, 64).to(dtype)


def _mxfp8(weight: torch.Tensor) -> Parts:
    stored, scale = kitchen.quantize_mxfp8(weight)
    return {"weight": stored, "weight_scale": scale, "comfy_quant": word(format="mxfp8")}


def _read_mxfp8(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    return kitchen.dequantize_mxfp8(parts["weight"], parts["weight_scale"], dtype)


def _nvfp4(weight: torch.Tensor) -> Parts:
    whole = weight.abs().max() / (448 * 6)
    stored, scale = kitchen.quantize_nvfp4(weight, whole)
    parts = {"weight": stored, "weight_scale": scale.view(torch.uint8), "weight_scale_2": whole}
    return parts | {"comfy_quant": word(format="nvfp4")}


def _read_nvfp4(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    scale = parts["weight_scale"].view(torch.float8_e4m3fn)
    return kitchen.dequantize_nvfp4(parts["weight"], parts["weight_scale_2"], scale, dtype)


def _quanto(weight: torch.Tensor) -> Parts:
    scale = (weight.abs().amax(1, keepdim=True) / 127).to(torch.bfloat16)
    one = torch.ones(())
    return {
        "weight._data": (weight / scale).round().clamp(-127, 127).to(torch.int8),
        "weight._scale": scale,
        "input_scale": one,
        "output_scale": one,
    }


def _read_quanto(parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    """As `QBytesDequantizer` of optimum-quanto 0.2 multiplies."""
    return (parts["weight._scale"] * parts["weight._data"]).to(dtype)


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
    "fp8": Format(lambda w: {"weight": w.to(torch.float8_e5m2)}, _cast),
    "fp8-scale_weight": Format(*_scaled("scale_weight", _whole), _empty_mark),
    "fp8-weight_scale-1": Format(*_scaled("weight_scale", lambda w: _whole(w).view(1))),
    "fp8-scale-rows": Format(*_scaled("scale", _rows)),
    "fp8-rows-flat": Format(*_scaled("weight_scale", lambda w: _rows(w).flatten())),
    "fp8-groups": Format(_grouped, _read_groups, _empty_mark),
    "fp8-blocks": Format(_blocks, _read_blocks),
    "comfy-fp8": Format(_told_fp8, _scaled("weight_scale", _whole)[1]),
    "comfy-int8": Format(_int8, _read_int8),
    "comfy-int8-rotated": Format(_rotated, _read_rotated),
    "comfy-mxfp8": Format(_mxfp8, _read_mxfp8),
    "comfy-nvfp4": Format(_nvfp4, _read_nvfp4),
    "quanto-int8": Format(_quanto, _read_quanto),
}
GGUF_KINDS = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS", "Q4_1", "Q5_1",
              "Q3_K", "Q2_K")  # fmt: skip
