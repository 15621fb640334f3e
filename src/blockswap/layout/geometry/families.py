"""Strangers: this module owns saying what a checkpoint is that is no plain Wan transformer."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ...errors import OtherModelError

# A key that contains the mark belongs to the family. Wan's relatives have Wan's blocks and more.
# The third: diffusers' class for it, where its config can be read off the tensors.
_ANIMATE = ("Wan2.2-Animate", "WanAnimateTransformer3DModel")
_RELATIVES: tuple[tuple[str, str, str], ...] = (
    ("face_adapter.", *_ANIMATE),
    ("motion_encoder.", *_ANIMATE),
    ("pose_patch_embedding.", *_ANIMATE),
    ("fps_embedding.", "SkyReels-V2 diffusion forcing", "SkyReelsV2Transformer3DModel"),
    ("casual_audio_encoder.", "Wan2.2-S2V", ""),
    ("audio_injector.", "Wan2.2-S2V", ""),
    ("trainable_cond_mask.", "Wan2.2-S2V", ""),
    ("frame_packer.", "Wan2.2-S2V", ""),
    (".audio_cross_attn_wrapper.", "HuMo", ""),
    ("audio_proj_glob", "HuMo", ""),
    (".audio_cross_attn.", "MultiTalk / InfiniteTalk", ""),
    ("audio_proj.", "a Wan model with audio input", ""),
    (".cross_attn.processor.", "FantasyTalking", ""),
    ("dwpose_embedding.", "UniAnimate", ""),
    ("control_adapter.", "a Wan-Fun camera control model", ""),
    ("ref_conv.", "a Wan-Fun control model", ""),
    (".cam_encoder.", "ReCamMaster", ""),
    (".block.self_attn.", "Wan-Animate-2", ""),
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
    found = _relative(keys)
    return None if found is None else found[0]


def library_class_of(keys: Iterable[str]) -> str | None:
    """Diffusers' class for such a model, where there is one whose config its tensors show."""
    found = _relative(keys)
    return None if found is None or not found[1] else found[1]


def what_opens(keys: Iterable[str]) -> str:
    """What can be done with a model built on Wan that has `keys`."""
    name = library_class_of(keys)
    if name is not None:
        return f"open_transformer opens it as diffusers' {name}, and nothing else here reads it"
    return (
        "diffusers has no class that its tensors tell, so give open_transformer a skeleton= (a "
        "module of yours with its parameters on the meta device) or, where diffusers has one, the "
        "config= of it; or use ComfyUI's own loader with its swap node"
    )


def stranger_of(keys: Iterable[str]) -> str | None:
    """What the keys belong to when they are no Wan transformer's; None when they do not tell."""
    keys = tuple(keys)
    return next((what for mark, what in _STRANGERS if any(mark in key for key in keys)), None)


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


def _relative(keys: Iterable[str]) -> tuple[str, str] | None:
    """The name of the family, and diffusers' class for it."""
    keys = tuple(keys)
    found = ((what, cls) for mark, what, cls in _RELATIVES if any(mark in key for key in keys))
    return next(found, None)
