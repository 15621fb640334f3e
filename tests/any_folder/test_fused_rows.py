"""Queries, keys and values in one packed weight of a file, split by diffusers' converter."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from drawing import drawn
from safetensors.torch import save_file
from tiny_more_images import MORE_IMAGES

from blockswap import open_transformer

TINY = MORE_IMAGES["ZImageTransformer2DModel"]
BACK = {"all_final_layer.2-1.": "final_layer.", "all_x_embedder.2-1.": "x_embedder.",
        ".to_out.0.": ".out.", ".norm_k.": ".k_norm.", ".norm_q.": ".q_norm."}  # fmt: skip


def joined(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model in its vendor's names."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in BACK.items():
            name = name.replace(ours, theirs)
        q, _, last = name.partition(".to_q.")
        if last:
            parts = [model.state_dict()[f"{q}.to_{part}.weight"] for part in "qkv"]
            found[f"{q}.qkv.weight"] = torch.cat(parts)
        elif ".to_k." not in name and ".to_v." not in name:
            found[name] = tensor
    return found


def write_gguf(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fused weights as Q8_0; what they mean."""
    writer, means = gguf.GGUFWriter(path, "z-image"), {}
    for name, tensor in tensors.items():
        raw, kind = tensor.float().numpy(), gguf.GGMLQuantizationType.F32
        if ".qkv." in name:
            raw, kind = gguf.quants.quantize(raw, (q8 := gguf.GGMLQuantizationType.Q8_0)), q8
            means[name] = torch.from_numpy(gguf.quants.dequantize(raw, kind).copy())
        writer.add_tensor(name, raw, raw_dtype=kind)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return means


def write_fp8(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fused weights with a scale a row."""
    stored, means = {}, {}
    for name, tensor in tensors.items():
        stored[name] = tensor
        if ".qkv." in name:
            scale = tensor.float().abs().amax(1, keepdim=True) / 448
            stored[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix("weight") + "scale_weight"] = scale
            means[name] = stored[name].bfloat16() * scale.bfloat16()
    save_file(stored, path)
    return means


@pytest.mark.parametrize("write", [write_gguf, write_fp8])
def test_streamed_as_split(write: Any, device: torch.device, tmp_path: Path) -> None:
    from diffusers import ZImageTransformer2DModel

    torch.manual_seed(0)
    model: Any = ZImageTransformer2DModel(**TINY.config).to(torch.bfloat16).eval()
    model.save_config(tmp_path)
    path = tmp_path / ("m.gguf" if write is write_gguf else "m.safetensors")
    for name, tensor in write(path, joined(model)).items():
        for part, rows in zip("qkv", tensor.chunk(3), strict=True):
            place = name.replace(".qkv.", f".to_{part}.")
            model.get_parameter(place).data.copy_(rows)
    given = drawn(TINY.inputs, device, seed=1)
    given = {name: _half(value) for name, value in given.items()}
    with torch.no_grad():
        expected = model.to(device)(**given, return_dict=False)[0][0].cpu()
        opened: Any = open_transformer(
            path, {"blocks_to_swap": 3}, device=device, dtype=torch.bfloat16, config=tmp_path
        )
        with opened.blockswap:
            for _ in range(2):
                found = opened(**given, return_dict=False)[0][0].cpu()
                assert torch.equal(found, expected)


def _half(value: Any) -> Any:
    return [tensor.bfloat16() for tensor in value] if isinstance(value, list) else value
