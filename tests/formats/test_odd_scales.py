"""Scales that no sound file has: the package's own arithmetic, or a sentence; never other numbers.

Zero, infinite, not a number, negative, subnormal; in each float dtype; for the whole, a row, or
lying the wrong way.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from files import weight_of
from packed import FORMATS, GGUF_KINDS, GGUF_SCALES, Parts, gguf_blocks
from safetensors.torch import save_file

from blockswap.errors import GeometryError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.formats import unpacked

LAYER = "blocks.0.self_attn.q"
VALUES = (0.0, -0.0, float("inf"), float("-inf"), float("nan"), -0.25, 1e-40, 6e-5, 3e38)
BYTES = (0, 1, 2, 126, 127, 128, 254, 255)  # of scales that are bytes: exponents, or fp8
SCALED = tuple(name for name in FORMATS if name != "fp8")


def drawn(rows: int = 128, columns: int = 256) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(4)).sub_(0.5)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Which number each is, the sign of a zero included; of what is none, that it is none."""
    return (
        torch.where(tensor.isnan(), 1.0, tensor),
        tensor.isnan(),
        tensor.signbit() & ~tensor.isnan(),
    )


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.dtype == expected.dtype and all(map(torch.equal, bits(found), bits(expected)))


def scales_of(parts: Parts) -> list[str]:
    ends = ("input_scale", "output_scale", "scale_input")
    return [name for name in parts if "scale" in name and name not in ends]


def spoilt(scale: torch.Tensor, value: float) -> torch.Tensor:
    """Every third scale is `value`; a byte where they are bytes."""
    made = scale.clone()
    raw = made.view(torch.uint8) if made.element_size() == 1 else made
    raw.flatten()[::3] = value  # a view: the scales are contiguous
    return made


def cases(parts: Parts) -> Iterator[Parts]:
    for name in scales_of(parts):
        scale = parts[name].contiguous()
        if scale.element_size() == 1:
            yield from (parts | {name: spoilt(scale, byte)} for byte in BYTES)
            continue
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            yield parts | {name: scale.to(dtype)}
            yield from (parts | {name: spoilt(scale.to(dtype), value)} for value in VALUES)


@pytest.mark.parametrize("name", SCALED)
def test_whatever_stands_there_is_computed_as_the_package_does(name: str, tmp_path: Path) -> None:
    """A block for each case, in one file."""
    found = list(cases(FORMATS[name].write(drawn())))
    layers = [f"blocks.{number}.self_attn.q" for number in range(len(found))]
    stored = {
        f"{layer}.{end}": part.clone(memory_format=torch.contiguous_format)
        for layer, parts in zip(layers, found, strict=True)
        for end, part in parts.items()
    }
    save_file(stored, tmp_path / "f.safetensors")
    checkpoint = unpacked(open_checkpoint(tmp_path / "f.safetensors"))
    for layer, parts in zip(layers, found, strict=True):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            made = weight_of(checkpoint, checkpoint.tensors[f"{layer}.weight"], str(dtype)[6:])
            told = dtype, {name: parts[name].flatten()[:2] for name in scales_of(parts)}
            assert same(made, FORMATS[name].read(parts, dtype)), told


@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_scales_of_ggml_blocks(kind: str, tmp_path: Path) -> None:
    type_ = gguf.GGMLQuantizationType[kind]
    raw = gguf_blocks(kind, drawn()).copy()
    blocks = raw.reshape(-1, gguf.GGML_QUANT_SIZES[type_][1])
    odd = np.float16([0.0, -0.0, np.inf, -np.inf, np.nan, -0.25, 6e-8, 65504.0])
    for number, at in enumerate(GGUF_SCALES[kind]):
        for block, scale in enumerate(np.roll(odd, number)):
            blocks[block, at : at + 2] = scale.reshape(1).view(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "f.gguf", "wan")
    writer.add_tensor(f"{LAYER}.weight", raw, raw_dtype=type_)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.quants.dequantize(raw, type_).copy())
    checkpoint = open_checkpoint(tmp_path / "f.gguf")
    for dtype in (torch.bfloat16, torch.float32):
        found = weight_of(checkpoint, checkpoint.tensors[f"{LAYER}.weight"], str(dtype)[6:])
        assert same(found, expected.to(dtype)), dtype


def told(kind: str, scale: torch.Tensor, of: str = "weight_scale", **more: Any) -> Parts:
    return FORMATS[kind].write(drawn(256, 256)) | {of: scale} | more


ROWS = torch.ones(256)
REFUSED: dict[str, tuple[Parts, str]] = {
    "fp64": (told("fp8-scale-rows", ROWS[:, None].double(), "scale"), "float64"),
    "integers": (told("fp8-scale_weight", torch.ones(()).int(), "scale_weight"), "int32"),
    "no number": (told("fp8-scale_weight", torch.ones(0), "scale_weight"), "does not divide"),
    "too many": (told("fp8-scale_weight", torch.ones(3), "scale_weight"), "does not divide"),
    "four axes": (told("fp8-scale-rows", ROWS.view(256, 1, 1, 1), "scale"), "does not divide"),
    "a row of a told layer, flat": (told("comfy-fp8", ROWS), "[256, 1]"),
    "a row of a told layer, across": (told("comfy-fp8", ROWS[None]), "[256, 1]"),
    "blocks of a told layer": (told("comfy-fp8", torch.ones(2, 2)), "[256, 1]"),
    "a row of told int8, flat": (told("comfy-int8", ROWS), "[256, 1]"),
    "a row of told int8, across": (told("comfy-int8-rotated", ROWS[None]), "[256, 1]"),
    "int8 that is none": (
        told("comfy-int8", ROWS[:, None], weight=drawn(256, 256).bfloat16()), "bfloat16"),
    "fp8 that is none": (
        told("comfy-fp8", torch.ones(()), weight=drawn(256, 256).bfloat16()), "bfloat16"),
    "fp8 that is another": (
        told("comfy-fp8", torch.ones(()), weight=drawn(256, 256).to(torch.float8_e5m2)),
        "float8_e5m2 and says"),
    "nvfp4 with a scale a row": (told("comfy-nvfp4", ROWS, "weight_scale_2"), "does not divide"),
    "mxfp8 in fp32": (told("comfy-mxfp8", torch.ones(256, 8)), "float32"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_package_would_not_take_is_refused(case: str, tmp_path: Path) -> None:
    parts, words = REFUSED[case]
    path = tmp_path / "f.safetensors"
    save_file({f"{LAYER}.{end}": part.contiguous() for end, part in parts.items()}, path)
    with pytest.raises(GeometryError) as refused:
        unpacked(open_checkpoint(path))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_scale_a_column_is_one(tmp_path: Path) -> None:
    """[1, columns] multiplies columns, in every package that broadcasts."""
    parts = told(
        "fp8-scale-rows", torch.rand(1, 256, generator=torch.Generator().manual_seed(1)), "scale"
    )
    path = tmp_path / "f.safetensors"
    save_file({f"{LAYER}.{end}": part.contiguous() for end, part in parts.items()}, path)
    checkpoint = unpacked(open_checkpoint(path))
    found = weight_of(checkpoint, checkpoint.tensors[f"{LAYER}.weight"])
    assert same(found, FORMATS["fp8-scale-rows"].read(parts, torch.bfloat16))
