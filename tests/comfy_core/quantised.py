"""Checkpoints with quantised layers, in every spelling that cores of today read."""

import json
from typing import Any

import comfy.quant_ops
import comfy.utils
import tiny
import torch

PER_LAYER = hasattr(comfy.utils, "convert_old_quants")
"""Whether this core reads `comfy_quant` beside a layer's weight."""
# The formats that a core without a graphics card computes with, by emulation.
FORMATS = tuple(
    name
    for name in ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "mxfp8", "nvfp4")
    if PER_LAYER and name in comfy.quant_ops.QUANT_ALGOS
)


def fp8_scaled(
    weights: dict[str, Any], *, full: bool = False, inputs: float | None = None
) -> dict[str, Any]:
    """As `*_fp8_scaled` files are; `full`: to compute in full precision, `inputs`: their scale."""
    made = tiny.fp8_scaled(weights)
    if full:
        made["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    for key in [key for key in made if key.endswith(".scale_weight")]:
        if inputs is not None:
            made[key.replace("scale_weight", "scale_input")] = torch.tensor(inputs)
    return made


def comfy_quant(weights: dict[str, Any], formats: tuple[str, ...], **words: Any) -> dict[str, Any]:
    """Each layer in the next of `formats`, said beside it; `words` are said of every layer."""
    made, number = {}, 0
    for key, value in weights.items():
        if not tiny.is_linear_of_a_block(key, value):
            made[key] = value
            continue
        name = formats[number % len(formats)]
        number += 1
        layout = comfy.quant_ops.QUANT_ALGOS[name]["comfy_tensor_layout"]
        scale = {} if name in ("mxfp8", "int8_tensorwise") else {"scale": "recalculate"}
        packed = comfy.quant_ops.QuantizedTensor.from_float(value, layout, **scale)
        made.update({k: v.contiguous() for k, v in packed.state_dict(key).items()})
        said = json.dumps({"format": name, **words}).encode()
        made[key.replace(".weight", ".comfy_quant")] = torch.tensor(list(said), dtype=torch.uint8)
    return made
