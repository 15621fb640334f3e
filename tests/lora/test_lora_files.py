"""The gate of LoRA files: spellings that are read, and what is refused, in one sentence each."""

import json

import pytest
import torch
from safetensors.torch import save_file

from blockswap.decode.additions import Difference, LowRank, Scale, Strength
from blockswap.errors import ArgsError, BlockSwapError, CheckpointError, GeometryError
from blockswap.lora.file import open_lora
from blockswap.lora.fit import fit
from blockswap.lora.request import Lora, as_loras, parse_loras

SHAPES = {
    "blocks.0.attn1.to_q.weight": (8, 8),
    "blocks.0.attn1.to_q.bias": (8,),
    "blocks.0.attn1.norm_q.weight": (8,),
    "blocks.0.ffn.net.0.proj.weight": (16, 8),
    "blocks.0.scale_shift_table": (1, 6, 8),
    "patch_embedding.weight": (8, 4, 1, 2, 2),
    "proj_out.weight": (4, 8),
}
MODEL = "WanTransformer3DModel"
Q = "blocks.0.self_attn.q"


def low(path, out=8, inside=8, rank=2, down="lora_A.weight", up="lora_B.weight"):
    return {f"{path}.{down}": torch.ones(rank, inside), f"{path}.{up}": torch.ones(out, rank)}


def fitted(tmp_path, tensors, strength=1.0, metadata=None, name="a.safetensors", partial=False):
    save_file(tensors, tmp_path / name, metadata=metadata)
    return fit([open_lora(Lora(tmp_path / name, strength, partial))], SHAPES, MODEL)


def additions(found, label):
    return [change.merged.addition for _, change in found.changes[label]]


KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight"}
SPELLED = {
    "original": low(f"diffusion_model.{Q}"),
    "with both prefixes": low(f"model.diffusion_model.{Q}"),
    "with a prefix twice": low(f"diffusion_model.diffusion_model.{Q}"),
    "diffusers": low("transformer.blocks.0.attn1.to_q"),
    "diffusers, old ends": low(
        "transformer.blocks.0.attn1.to_q", down="lora.down.weight", up="lora.up.weight"
    ),
    "an adapter's name": low(
        "transformer.blocks.0.attn1.to_q", down="lora_A.default.weight", up="lora_B.default.weight"
    ),
    "kohya": low("lora_unet_blocks_0_self_attn_q", **KOHYA),
    "kohya, diffusers' layers": low("lora_unet_blocks_0_attn1_to_q", **KOHYA),
    "VideoX-Fun": low("lora_unet__blocks_0_self_attn_q", **KOHYA),
    "DiffSynth": low(f"pipe.dit.{Q}", down="lora_A.default.weight", up="lora_B.default.weight"),
    "of a compiled model": low("_orig_mod.blocks.0.attn1.to_q"),
    "of a wrapped model": low(f"diffusion_model.module._orig_mod.{Q}"),
    "factors without the last word": low(f"diffusion_model.{Q}", down="lora_A", up="lora_B"),
    "lycoris": low("lycoris_blocks_0_self_attn_q", **KOHYA),
    "bare": low(Q),
    "bare, down and up": low(Q, **KOHYA),
}


@pytest.mark.parametrize("tensors", SPELLED.values(), ids=SPELLED)
def test_every_spelling_names_the_same_layer(tmp_path, tensors):
    found = fitted(tmp_path, tensors, 0.5)
    (addition,) = additions(found, "blocks.0.attn1.to_q.weight")
    assert addition == LowRank((2, 8), (8, 2), Scale(Strength(0.5), 2.0, 2))
    assert found.nbytes == 2 * 2 * 8 * 4


def test_peft_has_its_alpha_beside_it(tmp_path):
    tensors = low("base_model.model.blocks.0.attn1.to_q")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json, and there is none"):
        fitted(tmp_path, tensors, name="adapter_model.safetensors")
    config = {"lora_alpha": 6, "alpha_pattern": {"blocks.0.attn1.to_q": 5}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = fit([open_lora(Lora(tmp_path))], SHAPES, MODEL)
    assert additions(found, "blocks.0.attn1.to_q.weight")[0].scale.value == 5 / 2
    config = {"lora_alpha": 6, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = fit([open_lora(Lora(tmp_path, 0.5))], SHAPES, MODEL)
    assert additions(found, "blocks.0.attn1.to_q.weight")[0].scale.value == 0.5 * 6 / 2**0.5


NOT_PLAIN = {
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "takes a part out of the model's own"),
    "OLoRA": ({"init_lora_weights": "olora"}, "takes a part out of the model's own"),
    "QALoRA": ({"use_qalora": True}, "is not computed here"),
    "an activated LoRA": ({"alora_invocation_tokens": [1, 2]}, "is not computed here"),
    "transposed layers": ({"fan_in_fan_out": True}, "is not computed here"),
    "repeated layers": ({"layer_replication": [[0, 4], [2, 5]]}, "is not computed here"),
    "another adapter": ({"peft_type": "OFT"}, "its adapter is 'OFT'"),
    "a DoRA without magnitudes": ({"use_dora": True}, "no magnitude"),
    "an expression": ({"alpha_pattern": {r"blocks\.\d+\.attn1": 4}}, "only names of layers"),
    "no alpha": ({"lora_alpha": None}, "has the alpha None"),
    "a word for an alpha": ({"lora_alpha": "8"}, "has the alpha '8'"),
}


@pytest.mark.parametrize("case", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_what_peft_says_and_is_not_computed_here_is_refused(tmp_path, case):
    said, words = case
    save_file(low("base_model.model.blocks.0.attn1.to_q"), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, **said}))
    with pytest.raises(CheckpointError, match=words) as refused:
        open_lora(Lora(tmp_path))
    assert "\n" not in str(refused.value)


def test_peft_scales_two_whole_factors_by_the_rank_that_it_states(tmp_path):
    layer = "base_model.model.blocks.0.attn1.to_q"
    tensors = {f"{layer}.lokr_w1": torch.ones(2, 2), f"{layer}.lokr_w2": torch.ones(4, 4)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {
        "peft_type": "LOKR",
        "alpha": 6,
        "r": 8,
        "rank_pattern": {r"^blocks\.0\.attn1\.to_q$": 4},
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = fit([open_lora(Lora(tmp_path))], SHAPES, MODEL)
    assert additions(found, "blocks.0.attn1.to_q.weight")[0].scale.value == 6 / 4


def test_a_note_on_the_text_encoder_alone_says_nothing_of_the_transformer(tmp_path):
    note = json.dumps({"text_encoder.lora_alpha": 8, "text_encoder.r": 4})
    found = fitted(tmp_path, low(Q), metadata={"lora_adapter_metadata": note})
    assert additions(found, "blocks.0.attn1.to_q.weight")[0].scale.value == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_an_alpha_of_any_dtype_is_one_number(tmp_path, dtype, shape):
    found = fitted(tmp_path, {**low(Q), f"{Q}.alpha": torch.full(shape, 3, dtype=dtype)})
    assert additions(found, "blocks.0.attn1.to_q.weight")[0].scale.value == 1.5


def test_diffusers_notes_the_alpha_in_the_header(tmp_path):
    note = json.dumps({"transformer.r": 2, "transformer.lora_alpha": 8})
    tensors = low("transformer.blocks.0.attn1.to_q")
    found = fitted(tmp_path, tensors, metadata={"lora_adapter_metadata": note})
    assert additions(found, "blocks.0.attn1.to_q.weight")[0].scale.value == 4.0


def test_an_alpha_in_the_file_is_divided_by_each_layers_own_rank(tmp_path):
    tensors = {**low(Q, rank=2), f"{Q}.alpha": torch.tensor(1.0)}
    tensors |= {**low("head.head", out=4, rank=4), "head.head.alpha": torch.tensor(2.0)}
    found = fitted(tmp_path, tensors, 0.7)
    assert additions(found, "blocks.0.attn1.to_q.weight")[0].scale.value == 0.7 * 1.0 / 2
    assert additions(found, "proj_out.weight")[0].scale.value == 0.7 * 2.0 / 4


def test_differences_of_weights_biases_norms_and_tables(tmp_path):
    found = fitted(
        tmp_path,
        {
            **low(Q),
            f"{Q}.diff_b": torch.ones(8),
            "blocks.0.self_attn.norm_q.diff": torch.ones(8),
            "diffusion_model.blocks.0.diff_m": torch.ones(1, 6, 8),
            "patch_embedding.diff": torch.ones(8, 4, 1, 2, 2),
        },
        2.0,
    )
    for label in ("blocks.0.attn1.to_q.bias", "blocks.0.attn1.norm_q.weight",
                  "blocks.0.scale_shift_table", "patch_embedding.weight"):  # fmt: skip
        assert additions(found, label) == [Difference(Scale(Strength(2.0)))], label


def hada(**shapes):
    made = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)}
    return {f"{Q}.{part}": torch.ones(shape) for part, shape in (made | shapes).items()}


REFUSED = {
    "another size": (low(Q, 16, 16), GeometryError, "another size", "[16, 16]", "[8, 8]"),
    "another size, LoHa": (hada(hada_w1_b=(2, 16)), GeometryError, "another size"),
    "another size, LoKr": (
        {f"{Q}.lokr_w1": torch.ones(2, 2), f"{Q}.lokr_w2": torch.ones(8, 8)},
        GeometryError, "another size", "[16, 16]",
    ),
    "another size, difference": ({f"{Q}.diff": torch.ones(4, 8)}, GeometryError, "another size"),
    "no such layer": (
        {**low(Q), **low("vace_blocks.0.self_attn.q")},
        GeometryError, "2 of 4 tensors", "vace_blocks.0.self_attn.q.lora_A", "partial=True",
    ),
    "nothing fits": (low("layers.0.q"), GeometryError, "2 of 2 tensors", "the LoRA of this model"),
    "a bias that the layer lacks": (
        {"blocks.0.ffn.0.diff_b": torch.ones(16)}, GeometryError, "blocks.0.ffn.0.diff_b",
    ),
    "ranks that differ": (
        {f"{Q}.lora_A.weight": torch.ones(3, 8), f"{Q}.lora_B.weight": torch.ones(8, 2)},
        CheckpointError, "ranks 2 and 3",
    ),
    "half a LoRA": (
        {f"{Q}.lora_A.weight": torch.ones(2, 8)}, CheckpointError, "'down'", "no whole LoRA",
    ),
    "a convolution by a convolution": (
        {"patch_embedding.lora_A.weight": torch.ones(2, 4, 1, 1, 1),
         "patch_embedding.lora_B.weight": torch.ones(8, 2, 1, 2, 2)},
        GeometryError, "of one point",
    ),
    "a convolution's DoRA": (
        {"patch_embedding.lora_A.weight": torch.ones(2, 4, 1, 2, 2),
         "patch_embedding.lora_B.weight": torch.ones(8, 2, 1, 1, 1),
         "patch_embedding.dora_scale": torch.ones(8)},
        CheckpointError, "each of 8 rows",
    ),
    "a linear layer's factors as a convolution's": (
        {f"{Q}.lora_down.weight": torch.ones(2, 8, 1, 1),
         f"{Q}.lora_up.weight": torch.ones(8, 2, 1, 1)}, GeometryError, "convolutions",
    ),
    "LoCon in Tucker form": (
        {**low(Q, **KOHYA), f"{Q}.lora_mid.weight": torch.ones(2, 2, 1, 1)},
        CheckpointError, "LoCon",
    ),
    "a transposed difference": ({"blocks.0.ffn.0.diff": torch.ones(8, 16)},
                                GeometryError, "another size", "[8, 16]"),
    "an alpha in another spelling": (
        {**low(Q), "lora_unet_blocks_0_self_attn_q.alpha": torch.tensor(1.0)},
        GeometryError, "twice", "lora_unet_blocks_0_self_attn_q",
    ),
    "queries, keys and values in one": (
        low("lora_unet_blocks_0_self_attn_qkv", 24, **KOHYA), GeometryError, "2 of 2 tensors",
    ),
    "a text encoder's beside it": (
        {**low(Q), **low("lora_te_encoder_block_0_layer_0_SelfAttention_q", **KOHYA)},
        GeometryError, "2 of 4 tensors", "lora_te_", "partial=True",
    ),
    "scaled fp8": (
        {**low(Q), f"{Q}.lora_A.weight_scale": torch.ones(())}, CheckpointError, "weight_scale",
    ),
    "two adapters in one file": (
        {**low(Q, down="lora_A.a.weight", up="lora_B.a.weight"),
         **low(Q, down="lora_A.b.weight", up="lora_B.b.weight")}, CheckpointError, "no adapter's",
    ),
    "columns of a DoRA": (
        {**low("blocks.0.ffn.0", 16, 8), "blocks.0.ffn.0.dora_scale": torch.ones(1, 8)},
        CheckpointError, "each of 16 rows",
    ),
    "the same layer twice": (
        {**low(Q), **low("blocks.0.attn1.to_q")}, GeometryError, "twice",
    ),
    "two transformers": (
        {**low("transformer.blocks.0.attn1.to_q"), **low("transformer_2.blocks.0.attn1.to_q")},
        CheckpointError, "two transformers",
    ),
    "an alpha that is none": (
        {**low(Q), f"{Q}.alpha": torch.tensor(float("nan"))}, CheckpointError, "finite",
    ),
    "whole numbers": (
        {f"{Q}.lora_A.weight": torch.ones(2, 8, dtype=torch.int8),
         f"{Q}.lora_B.weight": torch.ones(8, 2)},
        CheckpointError, "int8",
    ),
    "a checkpoint": ({f"{Q}.weight": torch.ones(8, 8)}, CheckpointError, "no adapter's"),
    "Nunchaku": (
        {f"{Q}.qweight": torch.ones(8, 8), f"{Q}.wscales": torch.ones(8)},
        CheckpointError, "Nunchaku",
    ),
    "OFT": ({f"{Q}.oft_blocks": torch.ones(2, 4, 4)}, CheckpointError, "OFT"),
    "GLoRA": ({f"{Q}.a1.weight": torch.ones(2, 8)}, CheckpointError, "GLoRA"),
    "Tucker": ({**hada(), f"{Q}.hada_t1": torch.ones(2, 2, 1, 1)}, CheckpointError, "Tucker"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_refused_by_name(tmp_path, case):
    tensors, error, *words = case
    with pytest.raises(error) as refused:
        fitted(tmp_path, tensors)
    text = str(refused.value)
    assert "\n" not in text
    assert "a.safetensors" in text
    assert [word for word in words if word not in text] == []


def test_partial_leaves_out_what_fits_nothing_and_says_so(tmp_path):
    tensors = {**low(Q), **low("vace_blocks.0.self_attn.q")}
    found = fitted(tmp_path, tensors, partial=True)
    assert set(found.changes) == {"blocks.0.attn1.to_q.weight"}
    (said,) = found.left_out
    assert "2 of 4 tensors" in said
    with pytest.raises(GeometryError, match="2 of 2"):
        fitted(tmp_path, low("layers.0.q"), partial=True)


def test_loras_on_the_command_line(tmp_path):
    file = tmp_path / "a:b.safetensors"
    file.write_bytes(b"none")
    (own, high) = parse_loras([str(file), f"{file}:0.5", "no:1e-3"], None, partial=True)
    assert own == (Lora(str(file), 1.0, True), Lora(str(file), 0.5, True), Lora("no", 1e-3, True))
    assert high == ()
    assert parse_loras(["C:/none"], partial=False) == ((Lora("C:/none"),),)
    with pytest.raises(ArgsError, match="strength that is no number"):
        parse_loras([f"{file}:strong"], partial=False)
    with pytest.raises(ArgsError, match="finite number"):
        parse_loras([f"{file}:nan"], partial=False)
    with pytest.raises(ArgsError, match="without a LoRA"):
        parse_loras([], None, partial=True)


def test_a_pickle_is_never_read(tmp_path):
    torch.save(low(Q), tmp_path / "a.pt")
    (tmp_path / "a.pt").rename(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="zip archive"):
        open_lora(Lora(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a.safetensors", "it is a list"),
        ([("a", 1.0, 2)], "was given as a LoRA"),
        ([("a", "strong")], "a strength is a finite number"),
        ([("a", float("inf"))], "a strength is a finite number"),
        ([("a", True)], "a strength is a finite number"),
        ([3], "was given as a LoRA"),
    ],
)
def test_arguments(given, words):
    with pytest.raises(ArgsError, match=words):
        as_loras(given)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BlockSwapError, match="is not there"):
        open_lora(Lora(tmp_path / "none.safetensors"))
    with pytest.raises(BlockSwapError, match="holds neither"):
        open_lora(Lora(tmp_path))
