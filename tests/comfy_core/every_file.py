"""Writes a small file of every family and of every format that this ComfyUI reads.

Run as a program, with that ComfyUI's Python: `every_file.py FOLDER`.
"""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Made = tuple[dict[str, Any], dict[str, str] | None]
FAMILY, FORMAT = "family", "format"


def formats() -> dict[str, Callable[[dict[str, Any]], Made]]:
    """How each format is made of a bf16 checkpoint: its tensors, and words for its header."""
    import quantised
    import tiny
    import torch

    def fp8(dtype: torch.dtype) -> Callable[[dict[str, Any]], Made]:
        return lambda weights: (
            {k: v.to(dtype) if tiny.is_linear_of_a_block(k, v) else v for k, v in weights.items()},
            None,
        )

    made: dict[str, Callable[[dict[str, Any]], Made]] = {
        "fp16": lambda w: ({k: v.half() for k, v in w.items()}, None),
        "fp8_e4m3fn": fp8(torch.float8_e4m3fn),
        "fp8_e5m2": fp8(torch.float8_e5m2),
        "fp8_scaled": lambda w: (quantised.fp8_scaled(w), None),
        "fp8_scaled_full": lambda w: (quantised.fp8_scaled(w, full=True), None),
        "metadata": tiny.mixed_fp8,
    }
    for name in quantised.FORMATS:
        made[name] = lambda w, name=name: (quantised.comfy_quant(w, (name,)), None)
    if quantised.PER_LAYER:
        made["mixed"] = lambda w: (quantised.comfy_quant(w, quantised.FORMATS), None)
    return made


def _write(folder: Path) -> None:
    import tiny
    from safetensors.torch import save_file

    for family in tiny.FAMILIES:
        save_file(tiny.state_dict(family), folder / f"{FAMILY}-{family}.safetensors")
    for name, make in formats().items():
        weights, words = make(tiny.state_dict("t2v"))
        save_file(weights, folder / f"{FORMAT}-{name}.safetensors", words)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    sys.argv = ["main.py", "--cpu"]
    sys.path.insert(0, os.environ["BLOCKSWAP_COMFYUI"])
    importlib.import_module("comfy.options").enable_args_parsing()
    _write(target)
