"""Tiny Wan models of every family that ComfyUI knows, and how a test samples with them."""

from collections.abc import Callable
from typing import Any

import comfy.ldm.wan.model as wan
import comfy.model_base
import comfy.ops
import comfy.sample
import comfy.sd
import torch

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


def state_dict(family: str = "t2v", dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """A checkpoint of the family with small random weights."""
    name, config = _MAKERS[family]
    with torch.device("meta"):
        cls: Any = getattr(wan, name)
        skeleton = cls(**{**_COMMON, **config}, operations=comfy.ops.disable_weight_init)
    draw = torch.Generator().manual_seed(7)
    made = {}
    for key, tensor in skeleton.state_dict().items():
        value = torch.randn(tensor.shape, generator=draw) * 0.05
        if key.endswith("norm_q.weight") or key.endswith("norm_k.weight"):
            value += 1
        made[key] = value.to(dtype)
    return made


def model(family: str = "t2v", dtype: torch.dtype = torch.bfloat16, **options: Any) -> Any:
    """A ComfyUI model patcher with its own weights."""
    patcher = comfy.sd.load_diffusion_model_state_dict(state_dict(family, dtype), options)
    assert patcher is not None
    return patcher


def noise_for(patcher: Any) -> torch.Tensor:
    channels = patcher.get_model_object("latent_format").latent_channels
    draw = torch.Generator().manual_seed(3)
    return torch.randn(1, channels, 3, 8, 8, generator=draw)


def sample(patcher: Any, *, steps: int = 2, callback: Callable[..., None] | None = None) -> Any:
    """Latents of two steps through ComfyUI's own sampler."""
    noise = noise_for(patcher)
    draw = torch.Generator().manual_seed(5)
    texts = [torch.randn(1, 7, 4096, generator=draw) for _ in range(2)]
    positive, negative = ([[text, {}]] for text in texts)
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
        callback=callback,
        disable_pbar=True,
        seed=3,
    )
