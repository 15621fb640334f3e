"""Strangers: this module owns saying what a checkpoint is that is no plain Wan transformer."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ...errors import OtherModelError

# A key that contains the mark belongs to the family. Wan's relatives have Wan's blocks and more.
_RELATIVES: tuple[tuple[str, str], ...] = (
    ("face_adapter.", "Wan2.2-Animate"),
    ("motion_encoder.", "Wan2.2-Animate"),
    ("pose_patch_embedding.", "Wan2.2-Animate"),
    ("casual_audio_encoder.", "Wan2.2-S2V"),
    ("audio_injector.", "Wan2.2-S2V"),
    ("trainable_cond_mask.", "Wan2.2-S2V"),
    ("frame_packer.", "Wan2.2-S2V"),
    (".audio_cross_attn.", "MultiTalk / InfiniteTalk"),
    ("audio_proj.", "a Wan model with audio input"),
    ("control_adapter.", "a Wan-Fun camera control model"),
    ("ref_conv.", "a Wan-Fun control model"),
    ("fps_embedding.", "SkyReels-V2 diffusion forcing"),
    (".cam_encoder.", "ReCamMaster"),
    (".block.self_attn.", "Wan-Animate-2"),
)
_STRANGERS: tuple[tuple[str, str], ...] = (
    ("lora_", "a LoRA, not a whole model"),
    (".hada_", "a LoHa adapter, not a whole model"),
    (".lokr_", "a LoKr adapter, not a whole model"),
    (".oft_", "an OFT adapter, not a whole model"),
    (".diff_b", "an adapter of differences, not a whole model"),
    ("double_blocks.", "a Flux or Hunyuan Video transformer"),
    ("single_transformer_blocks.", "a diffusers Flux or Hunyuan Video transformer"),
    ("patchify_proj.", "an LTX-Video transformer"),
    ("txt_norm.", "a Qwen-Image transformer"),
    ("joint_blocks.", "a Stable Diffusion 3 transformer"),
    ("transformer_blocks.", "another diffusion transformer (diffusers naming)"),
    ("input_blocks.", "a Stable Diffusion or SDXL U-Net"),
    ("down_blocks.", "a U-Net or VAE (diffusers naming)"),
    ("token_embedding.", "the UMT5 text encoder of Wan"),
    ("shared.weight", "a T5 text encoder"),
    ("encoder.downsamples.", "the VAE of Wan"),
    ("decoder.upsamples.", "the VAE of Wan"),
    ("visual.transformer.", "the CLIP image encoder of Wan"),
    ("vision_model.", "a CLIP image encoder"),
    ("model.layers.", "a language model"),
)


def relative_of(keys: Iterable[str]) -> str | None:
    """Which model built on Wan the keys belong to, where it has more than Wan's own tensors."""
    return _first(keys, _RELATIVES)


def stranger_of(keys: Iterable[str]) -> str | None:
    """What the keys belong to when they are no Wan transformer's; None when they do not tell."""
    return _first(keys, _STRANGERS)


@contextmanager
def saying_where_a_config_goes(option: str) -> Iterator[None]:
    """Around what opens a Wan file: a refusal of another model names `option`, its config's."""
    try:
        yield
    except OtherModelError as error:
        raise OtherModelError(
            f"{error}; for a file of another model of diffusers give {option}, the folder of its "
            "config.json"
        ) from error


def _first(keys: Iterable[str], marks: tuple[tuple[str, str], ...]) -> str | None:
    keys = tuple(keys)
    return next((what for mark, what in marks if any(mark in key for key in keys)), None)
