"""What conversion must not tear, take for a Wan model, or write through."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockswap.convert import convert
from blockswap.errors import BlockSwapError, OutputError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import WanGeometry, infer_geometry, tensor_names

TINY = WanGeometry(dim=256, ffn_dim=512, num_layers=2, num_heads=2, text_dim=64)
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
BESIDE = (
    "weight_scale", "weight_scale_inv", "scale", "weight._scale", "wscale", "weight.scale",
    "scale_weight", "input_scale", "zero_point", "weight.zeros", "comfy_quant", "anything_new",
)  # fmt: skip


def weights(of=lambda name: torch.bfloat16):
    return {n: torch.full(s, 2.0).to(of(n)) for n, s in tensor_names(TINY).items()}


def is_linear(name):
    return name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name


@pytest.fixture
def whole(tmp_path):
    save_file(weights(), tmp_path / "whole.safetensors")
    return tmp_path / "whole.safetensors"


# Scales of fp8 weights, which a cast multiplies by; and what is of no use without fp8 products.
APPLIED = {"weight_scale": 0.5, "weight_scale_inv": 0.5, "scale": 0.5, "wscale": 0.5,
           "scale_weight": 0.5, "input_scale": 1.0}  # fmt: skip


@pytest.mark.parametrize("stored", EIGHT_BITS)
@pytest.mark.parametrize("suffix", BESIDE)
def test_what_lies_beside_an_8_bit_weight_is_never_torn_off(tmp_path, suffix, stored):
    tensors = weights(lambda name: stored if is_linear(name) else torch.bfloat16)
    for name in [name for name in tensors if name.endswith("ffn.0.weight")]:
        tensors[f"{name.removesuffix('weight')}{suffix}"] = torch.tensor([0.5])
    if suffix == "comfy_quant":
        word = torch.tensor(list(b'{"format": "new"}')).to(torch.uint8)
        tensors |= {name: word.clone() for name in tensors if name.endswith(suffix)}
    save_file(tensors, tmp_path / "in.safetensors")
    if stored.is_floating_point and suffix in APPLIED:
        made = convert(tmp_path / "in.safetensors", tmp_path / "cast.safetensors", dtype="bfloat16")
        cast = load_file(made.path)
        assert f"blocks.1.ffn.0.{suffix}" not in cast
        assert torch.all(cast["blocks.1.ffn.0.weight"] == 2 * APPLIED[suffix])
        assert torch.all(cast["blocks.0.ffn.2.weight"] == 2)
        assert len(made.notes) == (suffix == "input_scale")
        made.path.unlink()
    else:
        with pytest.raises(BlockSwapError, match="is quantised"):
            convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", dtype="bfloat16")
    assert sorted(os.listdir(tmp_path)) == ["in.safetensors"]
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")  # as it is: nothing lost
    out = load_file(tmp_path / "out.safetensors")
    assert all(
        torch.equal(out[n].view(torch.uint8), t.view(torch.uint8)) for n, t in tensors.items()
    )


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(
    "name", ["blocks.0.ffn.0_scale", "blocks.0.scale_ffn", "scales.blocks.0.ffn.0",
             "scale_dict.blocks.0.ffn.0.weight"]
)  # fmt: skip
def test_scales_that_are_kept_apart_are_not_torn_off(tmp_path, name, prefix):
    tensors = weights(lambda name: torch.float8_e4m3fn if is_linear(name) else torch.bfloat16)
    tensors = {prefix + key: tensor for key, tensor in tensors.items()}
    save_file({**tensors, name: torch.tensor([0.5])}, tmp_path / "in.safetensors")
    with pytest.raises(BlockSwapError, match="is quantised"):
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", dtype="bfloat16")


@pytest.mark.parametrize("linked", [True, False])
def test_the_source_where_the_unfinished_file_will_be_is_refused(tmp_path, whole, linked):
    part = tmp_path / ".o.safetensors.part"
    whole.rename(part)
    source, before = part, part.read_bytes()
    if linked:
        source = tmp_path / "in.safetensors"
        source.symlink_to(part)
    with pytest.raises(BlockSwapError):
        convert(source, tmp_path / "o.safetensors")
    assert part.read_bytes() == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("stored", EIGHT_BITS)
@pytest.mark.parametrize("everywhere", [True, False])
def test_no_8_bit_float_is_left_by_a_cast(tmp_path, stored, dtype, everywhere):
    tensors = weights(lambda name: stored if everywhere or is_linear(name) else torch.bfloat16)
    save_file(tensors, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", dtype=dtype)
    out = load_file(tmp_path / "out.safetensors")
    assert stored not in {t.dtype for t in out.values()}
    assert all(out[n].double().eq(t.double()).all() for n, t in tensors.items())


zeros = torch.zeros
STRANGERS = {
    "lora": {
        f"blocks.{i}.self_attn.q.lora_{x}.weight": zeros(4, 8) for i in range(2) for x in "AB"
    },
    "text encoder": {
        "token_embedding.weight": zeros(8, 8),
        **{f"blocks.{i}.attn.q.weight": zeros(8, 8) for i in range(2)},
    },
    "audio module": {
        "audio_proj.proj1.weight": zeros(8, 8),
        **{f"blocks.{i}.audio_cross_attn.q_linear.weight": zeros(8, 8) for i in range(2)},
    },
    "other model": {
        "x_embedder.proj.weight": zeros(8, 8),
        **{f"blocks.{i}.attn.qkv.weight": zeros(24, 8) for i in range(2)},
    },
    "flux": {f"double_blocks.{i}.img_attn.qkv.weight": zeros(8, 8) for i in range(2)},
    "qkv and nothing else": {f"blocks.{i}.attn.qkv.weight": zeros(24, 8) for i in range(2)},
    "vit": {
        "head.weight": zeros(8, 8),
        **{
            f"blocks.{i}.{n}.weight": zeros(8, 8)
            for i in range(2)
            for n in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        },
    },
    "another with a patch embedding": {
        "patch_embedding.weight": zeros(8, 4, 1, 2, 2),
        **{f"blocks.{i}.attn.qkv.weight": zeros(24, 8) for i in range(2)},
    },
    "a shard of a text encoder": {f"blocks.{i}.attn.q.weight": zeros(8, 8) for i in range(2)},
    "audio attention": {
        f"blocks.{i}.audio_cross_attn.q_linear.weight": zeros(8, 8) for i in (0, 1)
    },
    "oft": {f"blocks.{i}.self_attn.q.oft_blocks": zeros(4, 8) for i in range(2)},
    "differences": {f"blocks.{i}.self_attn.q.diff_b": zeros(8) for i in range(2)},
    "vae": {"encoder.downsamples.0.weight": zeros(8, 8)},
}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("kind", STRANGERS)
def test_conversion_refuses_strangers_with_the_words_of_inspection(tmp_path, kind, dtype):
    save_file(STRANGERS[kind], tmp_path / "in.safetensors")
    with pytest.raises(BlockSwapError) as inspected:
        infer_geometry(open_checkpoint(tmp_path / "in.safetensors"))
    with pytest.raises(BlockSwapError) as converted:
        convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", dtype=dtype)
    assert str(converted.value) == str(inspected.value)
    assert os.listdir(tmp_path) == ["in.safetensors"]


@pytest.mark.parametrize("name", [".out.safetensors.part", ".out.safetensors.journal",
                                  ".out.safetensors.journal-new"])  # fmt: skip
@pytest.mark.parametrize("how", ["symlink", "hard link", "dangling", "pipe", "folder"])
def test_nothing_is_written_through_what_another_put_there(tmp_path, whole, name, how):
    before, there = whole.read_bytes(), tmp_path / name
    if how == "symlink":
        there.symlink_to(whole)
    elif how == "hard link":
        os.link(whole, there)
    elif how == "dangling":
        there.symlink_to(tmp_path / "made by nobody")
    elif how == "pipe":
        os.mkfifo(there)
    else:
        there.mkdir()
    with pytest.raises(OutputError, match=r"a link or no plain file|it is the source itself"):
        convert(whole, tmp_path / "out.safetensors", dtype="float32")
    assert whole.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted([name, whole.name])


@pytest.mark.parametrize("target", ["whole.safetensors", "link.safetensors", "hard.safetensors"])
def test_the_source_under_another_name_is_the_source(tmp_path, whole, target):
    (tmp_path / "link.safetensors").symlink_to(whole)
    os.link(whole, tmp_path / "hard.safetensors")
    before = whole.read_bytes()
    with pytest.raises(OutputError, match="source itself"):
        convert(whole, tmp_path / target, overwrite=True)
    assert whole.read_bytes() == before


JOURNALS = {
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"a":' * 50_000,
    "binary": bytes(range(256)),
    "empty": b"",
    "list": b"[]",
    "huge number": b'{"version": ' + b"9" * 10_000 + b"}",
    "nan": b'{"version": NaN}',
    "negative": json.dumps({"version": 1, "done_bytes": -1}).encode(),
    "large": b" " * (5 * 1024 * 1024),
}


@pytest.mark.parametrize("kind", JOURNALS)
def test_a_journal_that_cannot_be_read_is_begun_anew(tmp_path: Path, whole, kind):
    (tmp_path / ".out.safetensors.part").write_bytes(b"what was there")
    (tmp_path / ".out.safetensors.journal").write_bytes(JOURNALS[kind])
    made = convert(whole, tmp_path / "out.safetensors")
    assert made.resumed_bytes == 0
    assert "its journal cannot be read" in made.notes[0] or "changed since" in made.notes[0]
    out = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(out[n], t) for n, t in weights().items())
    assert sorted(os.listdir(tmp_path)) == ["out.safetensors", whole.name]
