"""What lies beside a transformer is another model, a note, or a reason not to open the file."""

import re
from pathlib import Path

import pytest
import torch
from checkpoint_samples import STATED, TINY, shard_name
from safetensors.torch import save_file

from blockswap import open_transformer
from blockswap.errors import CheckpointError, GeometryError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import file_names, infer_geometry

PREFIX = "model.diffusion_model."
ADAPTED = "diffusion_model.blocks.0.self_attn.q."


def save(folder: Path, extra: dict[str, torch.Tensor], linears: torch.dtype) -> Path:
    tensors = {
        PREFIX + name: torch.zeros(shape).to(linears if len(shape) == 2 else torch.bfloat16)
        for name, shape in file_names(TINY).items()
    }
    save_file({**tensors, **extra}, folder / "f.safetensors", STATED)
    return folder / "f.safetensors"


HARMLESS = {
    "first_stage_model.decoder.conv1.weight": (4, 4),
    "vae.encoder.conv1.weight": (4, 4),
    "cond_stage_model.shared.weight": (4, 4),
    "conditioner.embedders.0.model.weight": (4, 4),
    "text_encoders.umt5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.scale_weight": (1,),
    "text_encoder.shared.weight": (4, 4),
    "clip_vision.vision_model.embeddings.class_embedding": (4,),
    "image_encoder.vision_model.embeddings.class_embedding": (4,),
    "model_type.Wan2.1-T2V": (1,),
    "freqs": (4, 4),
    "global_step": (1,),
    "model.ema_decay": (1,),
    "blockswap_padding.3": (7,),
}


@pytest.mark.parametrize("linears", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", HARMLESS)
def test_other_models_and_notes_are_left_out(
    tmp_path: Path, name: str, linears: torch.dtype
) -> None:
    checkpoint = open_checkpoint(save(tmp_path, {name: torch.zeros(HARMLESS[name])}, linears))
    assert infer_geometry(checkpoint) == TINY
    assert checkpoint.left_out == (name,)


STRAYS = {
    "scales.blocks.0.ffn.0.weight": "scales or other parts",
    "scale_dict.blocks.0.ffn.0": "scales or other parts",
    "freqs.scales.blocks.0.ffn.0": "scales or other parts",
    "model_type.scale.blocks.0.ffn.0": "scales or other parts",
    "step.blocks.0.ffn.0.weight": "scales or other parts",
    "unheard.of": "scales or other parts",
    "face_adapter.fuser_blocks.0.linear1_q.weight": "Wan2.2-Animate",
    "pose_patch_embedding.weight": "Wan2.2-Animate",
    "motion_encoder.enc.weight": "Wan2.2-Animate",
    "audio_proj.proj1.weight": "audio input",
    "ref_conv.weight": "Wan-Fun control",
    ADAPTED + "lora_A.weight": "a LoRA",
    "lora_unet_blocks_0_self_attn_q.lora_down.weight": "a LoRA",
    ADAPTED + "hada_w1_a": "a LoHa",
    ADAPTED + "lokr_w1": "a LoKr",
    ADAPTED + "weight": "under another prefix",
    "transformer.blocks.0.self_attn.q.weight": "under another prefix",
    "module.head.modulation": "under another prefix",
}


@pytest.mark.parametrize("linears", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", STRAYS)
def test_what_may_be_a_part_of_the_model_is_refused(
    tmp_path: Path, name: str, linears: torch.dtype
) -> None:
    if name.startswith("model_type.") and linears is torch.bfloat16:
        pytest.skip("beside whole weights it is a note")
    path = save(tmp_path, {name: torch.zeros(4, 4)}, linears)
    with pytest.raises(GeometryError, match=re.escape(name)) as refused:
        infer_geometry(open_checkpoint(path))
    assert STRAYS[name] in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(GeometryError, match=re.escape(name)):
        open_transformer(path, {"blocks_to_swap": 2}, device="cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["step.x.scale", "gain", "scales.all"])
def test_beside_weights_of_8_bits_a_lone_number_is_no_note(tmp_path: Path, name: str) -> None:
    whole = open_checkpoint(save(tmp_path, {name: torch.ones(1)}, torch.bfloat16))
    assert infer_geometry(whole) == TINY
    packed = open_checkpoint(save(tmp_path, {name: torch.ones(1)}, torch.float8_e4m3fn))
    with pytest.raises(GeometryError, match=re.escape(name)):
        infer_geometry(packed)


def test_two_transformers_are_not_one(tmp_path: Path) -> None:
    other = {f"diffusion_model.{name}": torch.ones(s) for name, s in file_names(TINY).items()}
    with pytest.raises(GeometryError, match=r"123 tensors .* one transformer under one prefix"):
        infer_geometry(open_checkpoint(save(tmp_path, other, torch.bfloat16)))


@pytest.mark.parametrize("key", ["wan.num_heads", "wan.eps", "wan.anything"])
def test_shards_must_agree_on_what_fixes_the_model(tmp_path: Path, key: str) -> None:
    for number, value in ((1, "4"), (2, "2")):
        metadata = {key: value, "note": value}
        save_file({f"a{number}": torch.zeros(1)}, tmp_path / shard_name(number, 2), metadata)
    with pytest.raises(CheckpointError, match=f"shards disagree, {key} is '4' in one and '2' in"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("number", [0, 3])
def test_a_shard_too_many_is_of_another_set(tmp_path: Path, number: int) -> None:
    for one in (1, 2, number):
        save_file({f"a{one}": torch.zeros(1)}, tmp_path / shard_name(one, 2))
    with pytest.raises(CheckpointError, match=f"holds shard {number} of 2, which is of another"):
        open_checkpoint(tmp_path)
