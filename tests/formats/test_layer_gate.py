"""What a quantised file says of its layers is a stranger's word: whole and in step, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from packed import Parts, word
from safetensors.torch import save_file

from blockswap.errors import GeometryError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.formats import unpacked

FP8, INT8, U8 = torch.float8_e4m3fn, torch.int8, torch.uint8
LAYER = "blocks.0.self_attn.q"


def ones(*shape: int, of: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape).to(of)


def told(of: torch.dtype, scale: torch.Tensor | None, **said: Any) -> Parts:
    parts = {"weight": ones(128, 256, of=of), "comfy_quant": word(**said)}
    return parts if scale is None else parts | {"weight_scale": scale}


REFUSED: dict[str, tuple[Parts, str]] = {
    "rows that do not fit": ({"weight": ones(128, 256, of=FP8), "scale": ones(64)}, "divide"),
    "groups that do not fit": (
        {"weight": ones(128, 256, of=FP8), "scale_weight": ones(128, 7, 1)}, "divide"),
    "a scale of integers": ({"weight": ones(128, 256, of=FP8), "scale": ones(1, of=U8)}, "uint8"),
    "a scale of a vector": ({"weight": ones(128, of=FP8), "scale": ones(1)}, "only matrices"),
    "an empty weight": ({"weight": ones(0, 4, of=FP8), "scale": ones(1)}, "only matrices"),
    "int8 without a word": (
        {"weight": ones(128, 256, of=INT8), "weight_scale": ones(128, 1)}, "was rotated"),
    "int8 without a scale": (told(INT8, None, format="int8_tensorwise"), "lacks"),
    "groups of seven": (
        told(INT8, ones(128, 1), format="int8_tensorwise", convrot=True, convrot_groupsize=7),
        "no power of four"),
    "groups in words": (
        told(INT8, ones(128, 1), format="int8_tensorwise", convrot=True, convrot_groupsize="64"),
        "no power of four"),
    "groups too wide": (
        told(INT8, ones(128, 1), format="int8_tensorwise", convrot=True, convrot_groupsize=1024),
        "do not divide"),
    "mxfp8 without exponents": (told(FP8, ones(128, 8), format="mxfp8"), "float32"),
    "mxfp8 with few exponents": (told(FP8, ones(64, 8, of=U8), format="mxfp8"), "tiles"),
    "nvfp4 with one scale": (told(U8, ones(128, 32, of=FP8), format="nvfp4"), "lacks"),
    "nvfp4 that scales inputs": (
        told(U8, ones(128, 32, of=FP8), format="nvfp4")
        | {"weight_scale_2": ones(1), "pre_quant_scale": ones(256)}, "use ComfyUI"),
    "a format that is none": (told(INT8, ones(1), format="new"), "as 'new'"),
    "a format of another type": (told(INT8, ones(1), format=4), "quantised as 4"),
    "no format": (told(INT8, ones(1)), "quantised as None"),
    "a word that is no JSON": (
        {"weight": ones(128, 256, of=FP8), "comfy_quant": torch.tensor([1, 2]).to(U8)}, "damaged"),
    "a word that is a list": (
        {"weight": ones(128, 256, of=FP8), "comfy_quant": torch.tensor(list(b"[]")).to(U8)},
        "damaged"),
    "an endless word": (
        {"weight": ones(128, 256, of=FP8), "comfy_quant": torch.zeros(5000, dtype=U8)}, "short"),
    "quanto in four bits": (
        {"weight._data": ones(128, 128, of=U8), "weight._scale": ones(128, 1)}, "decodes 8 bits"),
    "quanto without a scale": ({"weight._data": ones(128, 128, of=INT8)}, "lacks"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_layer_that_is_not_in_step_is_refused(case: str, tmp_path: Path) -> None:
    parts, words = REFUSED[case]
    stored = {f"{LAYER}.{end}": part.contiguous() for end, part in parts.items()}
    save_file(stored, tmp_path / "f.safetensors")
    with pytest.raises(GeometryError) as refused:
        unpacked(open_checkpoint(tmp_path / "f.safetensors"))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


OTHER = LAYER.replace("0", "1")
SCALED = {f"{LAYER}.weight": ones(8, 8, of=FP8), f"{LAYER}.scale_weight": ones(1)}
LOST: dict[str, tuple[Parts, str]] = {
    "one scale": ({**SCALED, f"{OTHER}.weight": ones(8, 8, of=FP8)}, "other blocks has one"),
    "one scale, an input's there": (
        {**SCALED, f"{OTHER}.weight": ones(8, 8, of=FP8), f"{OTHER}.scale_input": ones(1)},
        "other blocks has one"),
    "all scales": (
        {f"{LAYER}.weight": ones(8, 8, of=FP8), "scaled_fp8": ones(0, of=FP8)}, "says that it is"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_a_lost_scale_is_not_one(case: str, tmp_path: Path) -> None:
    stored, words = LOST[case]
    save_file({key: part.clone() for key, part in stored.items()}, tmp_path / "f.safetensors")
    with pytest.raises(GeometryError, match=words):
        unpacked(open_checkpoint(tmp_path / "f.safetensors"))


def test_what_nobody_scales_beside_scaled_layers_is_cast(tmp_path: Path) -> None:
    """Another layer, a bias and a norm in plain fp8; a word without a scale means one."""
    stored = {
        **SCALED,
        "blocks.1.self_attn.k.weight": ones(8, 8, of=FP8),
        f"{OTHER}.weight": ones(8, 8, of=FP8),
        f"{OTHER}.comfy_quant": word(format="float8_e4m3fn"),
        f"{OTHER}.bias": ones(8, of=FP8),
        "blocks.1.norm3.weight": ones(8, of=FP8),
    }
    save_file({key: part.clone() for key, part in stored.items()}, tmp_path / "f.safetensors")
    found = unpacked(open_checkpoint(tmp_path / "f.safetensors")).tensors
    packed = [key for key, tensor in found.items() if tensor.packing is not None]
    assert packed == [f"{LAYER}.weight"]


@pytest.mark.parametrize("said", ["[]", "{}", '{"layers": 3}', '{"layers": {"a": 1}}', "{"])
def test_a_header_that_names_no_layers_is_refused(said: str, tmp_path: Path) -> None:
    stored = {f"{LAYER}.weight": ones(8, 8, of=FP8), f"{LAYER}.weight_scale": ones(1)}
    path = tmp_path / "f.safetensors"
    save_file(stored, path, metadata={"_quantization_metadata": said})
    with pytest.raises(GeometryError, match="damaged"):
        unpacked(open_checkpoint(path))


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
@pytest.mark.parametrize("in_header", [True, False])
def test_a_word_counts_in_the_header_and_beside_the_layer(
    prefix: str, in_header: bool, tmp_path: Path
) -> None:
    said = {"format": "int8_tensorwise", "params": {"convrot": True, "convrot_groupsize": 16}}
    name = prefix + LAYER
    stored = {f"{name}.weight": ones(8, 32, of=INT8), f"{name}.weight_scale": ones(8, 1)}
    metadata = {}
    if in_header:
        metadata = {"_quantization_metadata": json.dumps({"layers": {name: said}})}
    else:
        stored[f"{name}.comfy_quant"] = word(**said)
    save_file(stored, tmp_path / "f.safetensors", metadata=metadata)
    found = unpacked(open_checkpoint(tmp_path / "f.safetensors")).tensors
    assert list(found) == [f"{LAYER}.weight"]
    packing = found[f"{LAYER}.weight"].packing
    assert packing is not None
    assert (packing.format, packing.rotation) == ("int8 rotated", 16)


@pytest.mark.parametrize("said", ["nvfp4", "mxfp8", "int8_tensorwise", "float8_e4m3fn", "new"])
@pytest.mark.parametrize("in_header", [True, False])
def test_what_is_said_of_a_plain_layer_is_not_passed_by(
    said: str, in_header: bool, tmp_path: Path
) -> None:
    """It would be cast, or miss its scales, wherever else the file is opened."""
    stored = {f"{LAYER}.weight": ones(128, 256, of=torch.bfloat16)}
    words = {"layers": {LAYER: {"format": said}, "no.layer.of.it": {"format": said}}}
    if not in_header:
        stored[f"{LAYER}.comfy_quant"] = word(format=said)
    path = tmp_path / "f.safetensors"
    save_file(stored, path, {"_quantization_metadata": json.dumps(words)} if in_header else None)
    with pytest.raises(GeometryError, match=r"lacks|says that it is|blockswap knows"):
        unpacked(open_checkpoint(path))


def test_what_is_not_packed_is_the_same_checkpoint(tmp_path: Path) -> None:
    save_file({f"{LAYER}.weight": ones(8, 8)}, tmp_path / "f.safetensors")
    checkpoint = open_checkpoint(tmp_path / "f.safetensors")
    assert unpacked(checkpoint) is checkpoint
