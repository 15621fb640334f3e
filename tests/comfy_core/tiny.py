"""Tiny Wan models of every family that ComfyUI knows, and how a test samples with them."""

import json
from collections.abc import Callable
from typing import Any

import comfy.ldm.wan.model as wan
import comfy.model_base
import comfy.ops
import comfy.sample
import comfy.sd
import comfy.utils
import torch

from blockswap import BlockSwapArgs
from blockswap.nodes.clone.patcher import swap_on_clone
from blockswap.nodes.runs.wish import Wish
from blockswap.nodes.seams import host_checkpoints

DIM, BLOCKS = 128, 6
_COMMON: dict[str, Any] = dict(dim=DIM, ffn_dim=256, num_heads=1, num_layers=BLOCKS, qk_norm=True)
_MAKERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t2v": ("WanModel", dict(model_type="t2v", in_dim=16)),
    "i2v": ("WanModel", dict(model_type="i2v", in_dim=36)),
    "i2v-2.2": ("WanModel", dict(model_type="t2v", in_dim=36)),
    "fun-control": ("WanModel", dict(model_type="i2v", in_dim=48)),
    "ti2v-5b": ("WanModel", dict(model_type="t2v", in_dim=48, out_dim=48)),
    "vace": ("VaceWanModel", dict(model_type="vace", vace_layers=2, vace_in_dim=96)),
    "camera": ("CameraWanModel", dict(model_type="camera", in_dim=32)),
    "camera-2.2": ("CameraWanModel", dict(model_type="camera_2.2", in_dim=36)),
}
FAMILIES = tuple(_MAKERS)


def state_dict(
    family: str = "t2v", dtype: torch.dtype = torch.bfloat16, *, blocks: int = BLOCKS, seed: int = 7
) -> dict[str, Any]:
    """A checkpoint of the family with small random weights."""
    name, config = _MAKERS[family]
    config = {**config, "num_layers": blocks}
    with torch.device("meta"), host_checkpoints.plain_layers():
        cls: Any = getattr(wan, name)
        skeleton = cls(**{**_COMMON, **config}, operations=comfy.ops.disable_weight_init)
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for key, tensor in skeleton.state_dict().items():
        value = torch.randn(tensor.shape, generator=draw) * 0.05
        if key.endswith("norm_q.weight") or key.endswith("norm_k.weight"):
            value += 1
        made[key] = value.to(dtype)
    return made


def model(family: str = "t2v", dtype: torch.dtype = torch.bfloat16, **options: Any) -> Any:
    """A ComfyUI model patcher with its own weights."""
    return loaded(state_dict(family, dtype, **options))


def loaded(weights: dict[str, Any], metadata: dict[str, str] | None = None) -> Any:
    """The patcher that ComfyUI makes of a checkpoint."""
    patcher = comfy.sd.load_diffusion_model_state_dict(dict(weights), metadata=metadata)
    assert patcher is not None
    return patcher


def fp8_scaled(weights: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint as `*_fp8_scaled` files have it: fp8 linears of blocks, each with a scale."""
    made: dict[str, Any] = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for key, value in weights.items():
        if is_linear_of_a_block(key, value):
            scale = value.float().abs().max() / 448
            made[key] = (value.float() / scale).to(torch.float8_e4m3fn)
            made[key.replace(".weight", ".scale_weight")] = scale.reshape(())
        else:
            made[key] = value
    return made


def mixed_fp8(weights: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The checkpoint with quantised tensors as newer files have them, and its metadata."""
    made: dict[str, Any] = {}
    layers = {}
    for key, value in weights.items():
        if is_linear_of_a_block(key, value):
            scale = value.float().abs().max() / 448
            made[key] = (value.float() / scale).to(torch.float8_e4m3fn)
            made[key.replace(".weight", ".weight_scale")] = scale.reshape(())
            layers[key.removesuffix(".weight")] = {"format": "float8_e4m3fn"}
        else:
            made[key] = value
    words = {"format_version": "1.0", "layers": layers}
    return made, {"_quantization_metadata": json.dumps(words)}


def is_linear_of_a_block(key: str, value: torch.Tensor) -> bool:
    return "blocks." in key and key.endswith(".weight") and value.ndim == 2


def with_lora(patcher: Any, strength: float, *, seed: int = 11) -> Any:
    """A clone with a LoRA, as ComfyUI's loader node adds it."""
    return comfy.sd.load_lora_for_models(patcher, None, lora_of(patcher, seed), strength, 0)[0]


def lora_of(patcher: Any, seed: int = 11) -> dict[str, Any]:
    """A LoRA for linears of every block and one outside them."""
    draw = torch.Generator().manual_seed(seed)
    lora = {}
    for key, value in patcher.model.diffusion_model.state_dict().items():
        inside = key.endswith(
            ("self_attn.q.weight", "cross_attn.v.weight", "ffn.0.weight", "ffn.2.weight")
        )
        if inside or key == "text_embedding.2.weight":
            name = "diffusion_model." + key.removesuffix(".weight")
            lora[f"{name}.lora_up.weight"] = torch.randn(value.shape[0], 4, generator=draw) * 0.1
            lora[f"{name}.lora_down.weight"] = torch.randn(4, value.shape[1], generator=draw) * 0.1
    return lora


def noise_for(patcher: Any, clip: tuple[int, ...] = (1, 3, 8, 8)) -> torch.Tensor:
    """`clip`: batch, frames, height and width of the latents."""
    channels = patcher.get_model_object("latent_format").latent_channels
    draw = torch.Generator().manual_seed(3)
    return torch.randn(clip[0], channels, *clip[1:], generator=draw)


def sample(
    patcher: Any,
    *,
    steps: int = 2,
    callback: Callable[..., None] | None = None,
    hooks: Any = None,
    clip: tuple[int, ...] = (1, 3, 8, 8),
    noise_mask: torch.Tensor | None = None,
    image: Any = None,
    conditioning: dict[str, Any] | None = None,
) -> Any:
    """Latents of two steps through ComfyUI's own sampler; `image` as CLIP sees it."""
    noise = noise_for(patcher, clip)
    draw = torch.Generator().manual_seed(5)
    texts = [torch.randn(1, 7, 4096, generator=draw) for _ in range(2)]
    positive, negative = ([[text, dict(conditioning or {})]] for text in texts)
    if hooks is not None:
        positive[0][1]["hooks"] = hooks
    if image is not None:
        positive[0][1]["clip_vision_output"] = negative[0][1]["clip_vision_output"] = image
    return comfy.sample.sample(
        patcher,
        noise,
        steps,
        3.0,
        "euler",
        "simple",
        positive,
        negative,
        torch.zeros_like(noise),
        noise_mask=noise_mask,
        callback=callback,
        disable_pbar=True,
        seed=3,
    )


def swapped(patcher: Any, **args: Any) -> Any:
    """A clone of `patcher` whose blocks are swapped, as the node makes it."""
    return swap_on_clone(patcher, Wish(BlockSwapArgs(**args)))
