"""What a checkpoint is said to be when it is no plain Wan transformer."""

from pathlib import Path

import pytest
from checkpoint_samples import STATED, TINY, save_shapes

from blockswap.errors import GeometryError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import infer_geometry, tensor_names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "Flux or Hunyuan Video"),
        ("model.diffusion_model.double_blocks.0.img_mod.lin.weight", "Flux or Hunyuan Video"),
        ("single_transformer_blocks.0.attn.to_q.weight", "diffusers Flux"),
        ("patchify_proj.weight", "LTX-Video"),
        ("txt_norm.weight", "Qwen-Image"),
        ("joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("transformer_blocks.0.attn1.to_q.weight", "another diffusion transformer"),
        ("model.diffusion_model.input_blocks.0.0.weight", "SDXL"),
        ("down_blocks.0.resnets.0.conv1.weight", "U-Net or VAE"),
        ("token_embedding.weight", "UMT5 text encoder"),
        ("shared.weight", "T5 text encoder"),
        ("encoder.downsamples.0.residual.0.gamma", "VAE of Wan"),
        ("decoder.upsamples.0.residual.0.gamma", "VAE of Wan"),
        ("visual.transformer.0.attn.proj.weight", "CLIP image encoder of Wan"),
        ("vision_model.embeddings.class_embedding", "CLIP image encoder"),
        ("model.layers.0.self_attn.q_proj.weight", "language model"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "a LoRA"),
        ("lora_unet_blocks_0_self_attn_q.lora_down.weight", "a LoRA"),
        ("blocks.0.self_attn.q.hada_w1_a", "a LoHa"),
        ("blocks.0.self_attn.q.lokr_w1", "a LoKr"),
    ],
)
def test_another_model_is_named(tmp_path: Path, name: str, words: str) -> None:
    path = save_shapes(tmp_path / "f.safetensors", {name: (2,)})
    with pytest.raises(GeometryError, match=words):
        infer_geometry(open_checkpoint(path))


def test_the_text_encoder_of_wan_is_not_taken_for_the_transformer(tmp_path: Path) -> None:
    # It has "blocks" of its own.
    names = {"token_embedding.weight": (2, 2), "blocks.0.attn.q.weight": (2, 2)}
    with pytest.raises(GeometryError, match="UMT5"):
        infer_geometry(open_checkpoint(save_shapes(tmp_path / "f.safetensors", names)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("face_adapter.fuser_blocks.0.q_norm.weight", "Wan2.2-Animate"),
        ("motion_encoder.enc.fc.0.weight", "Wan2.2-Animate"),
        ("casual_audio_encoder.weights", "Wan2.2-S2V"),
        ("audio_proj.proj1.weight", "audio input"),
        ("blocks.0.audio_cross_attn.q_linear.weight", "MultiTalk"),
        ("blocks.0.audio_cross_attn_wrapper.audio_cross_attn.q.weight", "HuMo"),
        ("control_adapter.conv.weight", "camera control"),
        ("ref_conv.weight", "Wan-Fun control"),
        ("fps_embedding.weight", "SkyReels"),
        ("blocks.0.cam_encoder.weight", "ReCamMaster"),
    ],
)
def test_a_model_built_on_wan_is_named_as_out_of_scope(
    tmp_path: Path, name: str, words: str
) -> None:
    shapes = {**tensor_names(TINY), name: (2,)}
    path = save_shapes(tmp_path / "f.safetensors", shapes, STATED)
    with pytest.raises(GeometryError, match=f"{words}.*no T2V, I2V"):
        infer_geometry(open_checkpoint(path))


def test_the_name_in_the_file_counts_not_the_key(tmp_path: Path) -> None:
    # "model." is taken off as a prefix, which leaves "layers.0", a name without a meaning.
    path = save_shapes(tmp_path / "f.safetensors", {"model.layers.0.mlp.weight": (2,)})
    with pytest.raises(GeometryError, match="language model"):
        infer_geometry(open_checkpoint(path))
