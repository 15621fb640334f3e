"""One UMT5 encoder in the names of transformers, ComfyUI and Wan-Video; folders; refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import ENCODERS, encode, prompt, same

from blockswap import open_text_encoder
from blockswap.errors import BlockSwapError

VENDOR = {
    "shared.weight": "token_embedding.weight",
    "encoder.final_layer_norm.weight": "norm.weight",
    ".layer.0.layer_norm.": ".norm1.",
    ".layer.1.layer_norm.": ".norm2.",
    ".layer.0.SelfAttention.relative_attention_bias.": ".pos_embedding.embedding.",
    ".layer.0.SelfAttention.": ".attn.",
    ".layer.1.DenseReluDense.wi_0.": ".ffn.gate.0.",
    ".layer.1.DenseReluDense.wi_1.": ".ffn.fc1.",
    ".layer.1.DenseReluDense.wo.": ".ffn.fc2.",
    "encoder.block.": "blocks.",
}


def saved(folder: Path, **how: Any) -> dict[str, torch.Tensor]:
    """A folder in bf16, and all its tensors."""
    ENCODERS["UMT5EncoderModel"].build().to(torch.bfloat16).save_pretrained(folder, **how)
    return {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}


def opened(path: Path, **how: Any) -> list[torch.Tensor]:
    model: Any = open_text_encoder(path, {"blocks_to_swap": 2}, device="cpu", **how)
    with model.blockswap:
        return encode(model, prompt())


def reference(folder: Path, **how: Any) -> list[torch.Tensor]:
    from transformers import UMT5EncoderModel

    found = UMT5EncoderModel.from_pretrained(folder, dtype=torch.bfloat16, **how)
    return encode(found.eval(), prompt())


def in_vendor_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        for ours, theirs in VENDOR.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


def test_single_files_in_three_spellings(tmp_path: Path) -> None:
    tensors = saved(tmp_path / "folder")
    wanted = reference(tmp_path / "folder")
    spiece = torch.arange(100, dtype=torch.uint8)
    files = {
        "library": tensors,
        "comfyui": {**tensors, "spiece_model": spiece},
        "vendor": in_vendor_names(tensors),
    }
    for name, content in files.items():
        path = tmp_path / f"{name}.safetensors"
        save_file({k: v.contiguous() for k, v in content.items()}, path)
        assert same(opened(path), wanted), name


def test_fp8_scaled_as_it_dequantises(tmp_path: Path) -> None:
    tensors = saved(tmp_path / "folder")
    quantised, plain = {"spiece_model": torch.zeros(3, dtype=torch.uint8)}, dict(tensors)
    quantised["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    for name, weight in tensors.items():
        if weight.dim() != 2 or "bias" in name or name == "shared.weight":
            quantised[name] = weight
            continue
        scale = weight.abs().max().float() / 448
        stored = (weight.float() / scale).to(torch.float8_e4m3fn)
        quantised |= {name: stored, name.replace("weight", "scale_weight"): scale}
        plain[name] = stored.to(torch.bfloat16) * scale.to(torch.bfloat16)
    save_file(quantised, tmp_path / "fp8.safetensors")
    from transformers import UMT5EncoderModel

    class_ = UMT5EncoderModel
    config = class_.config_class.from_pretrained(tmp_path / "folder")
    model = class_.from_pretrained(None, config=config, state_dict=plain, dtype=torch.bfloat16)
    assert same(opened(tmp_path / "fp8.safetensors"), encode(model.eval(), prompt()))


def test_folders_of_pipelines_variants_and_subfolders(tmp_path: Path) -> None:
    folder = tmp_path / "pipe" / "text_encoder"
    saved(folder, variant="fp16", max_shard_size="100KB")
    wanted = reference(folder, variant="fp16")
    named = ["transformers", "UMT5EncoderModel"]
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps({"text_encoder": named}))
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert same(opened(tmp_path / "pipe", variant="fp16"), wanted)
    assert same(opened(tmp_path / "pipe", subfolder="text_encoder", variant="fp16"), wanted)
    assert same(opened(folder, variant="fp16"), wanted)
    for how, words in (({}, "give variant="), ({"variant": "bf16"}, "of the variants 'fp16'")):
        with pytest.raises(BlockSwapError, match=words):
            opened(folder, **how)
    with pytest.raises(BlockSwapError, match="name of a folder inside"):
        opened(tmp_path, subfolder="../pipe")
    with pytest.raises(BlockSwapError, match="is not there"):
        opened(tmp_path, subfolder="other")


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _tensors(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


REFUSED = {
    "no such class": (
        lambda f: _edit(f, architectures=["MyEncoder"]), "'MyEncoder' is no model of transformers"),
    "code of its own": (
        lambda f: _edit(f, model_type="mine", auto_map={"AutoModel": "m.M"}), "is never run here"),
    "quantised": (
        lambda f: _edit(f, quantization_config={"quant_method": "gptq"}), "quantised by gptq"),
    "a tensor too few": (
        lambda f: _tensors(f, lambda t: t.pop("encoder.final_layer_norm.weight")), "lacks 1"),
    "a tensor too many": (
        lambda f: _tensors(f, lambda t: t.update(strange=torch.ones(3))), "no place for"),
    "another shape": (lambda f: _edit(f, d_ff=128), "its config.json is of another model"),
    "pickles": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "run code"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    saved(tmp_path)
    spoil, words = REFUSED[name]
    spoil(tmp_path)
    with pytest.raises(BlockSwapError, match=words) as refusal:
        opened(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    with pytest.raises(BlockSwapError, match="convert it first"):
        opened(tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")


def test_another_single_file_asks_for_its_config(tmp_path: Path) -> None:
    import transformers

    encoder = ENCODERS["Qwen3Model"].build().to(torch.bfloat16)
    encoder.save_pretrained(tmp_path / "folder")
    path = tmp_path / "qwen.safetensors"
    (tmp_path / "folder" / "model.safetensors").rename(path)
    with pytest.raises(BlockSwapError, match="give config="):
        opened(path)
    found = opened(path, config=tmp_path / "folder")
    path.rename(tmp_path / "folder" / "model.safetensors")
    plain = transformers.Qwen3Model.from_pretrained(tmp_path / "folder", dtype=torch.bfloat16)
    assert same(found, encode(plain.eval(), prompt()))
