"""More of the Wan families that ComfyUI knows, tiny, and what each is conditioned on."""

import importlib
import json
from types import SimpleNamespace
from typing import Any

import comfy.ops
import tiny
import torch

from blockswap.nodes.seams import host_checkpoints

CLIP = (1, 5, 8, 8)
_I2V: dict[str, Any] = dict(model_type="i2v", in_dim=36)
_T2V: dict[str, Any] = dict(model_type="t2v", in_dim=16)
# Class, its configuration, and what the file says of itself where its tensors do not.
_MAKERS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "flf": ("model.WanModel", dict(_I2V, flf_pos_embed_token_number=514), None),
    "fun-ref": ("model.WanModel", dict(_I2V, in_dim=48, in_dim_ref_conv=16), None),
    "in-context": ("model.WanModel", _T2V, None),
    "humo": ("model.HumoWanModel", dict(model_type="humo", in_dim=36), None),
    "humo-1.7": ("model.HumoWanModel", dict(model_type="humo", in_dim=16), None),
    "s2v": ("model.WanModel_S2V", dict(model_type="s2v", in_dim=16), None),
    "animate": ("model_animate.AnimateWanModel", dict(model_type="animate", in_dim=36), None),
    "animate2": ("model_animate2.WanAnimate2Model", _I2V, {"model_type": "animate2"}),
    "scail": ("model.SCAILWanModel", dict(model_type="scail", in_dim=20), None),
    "scail2": ("model.SCAIL2WanModel", dict(model_type="scail2", in_dim=20), None),
    "wandancer": ("model_wandancer.WanDancerModel", _I2V, None),
    "flow-rvs": ("model.WanModel", _T2V, {"model_type": "flow_rvs"}),
    "causal": ("ar_model.CausalWanModel", _T2V, {"causal_ar": True}),
}


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(f"comfy.ldm.wan.{module}"), name, None)
    except ImportError:
        return None


NAMES = tuple(name for name, (path, *_) in _MAKERS.items() if _class(path) is not None)


def state_dict(name: str) -> tuple[dict[str, Any], dict[str, str] | None]:
    """A checkpoint with small random weights, and words for its header."""
    path, config, said = _MAKERS[name]
    blocks = 10 if name == "animate" else tiny.BLOCKS  # five to a block of its face's
    common = dict(dim=tiny.DIM, ffn_dim=256, num_heads=1, num_layers=blocks, qk_norm=True)
    with torch.device("meta"), host_checkpoints.plain_layers():
        skeleton = _class(path)(**{**common, **config}, operations=comfy.ops.disable_weight_init)
    draw = torch.Generator().manual_seed(7)
    made = {}
    for key, tensor in skeleton.state_dict().items():
        value = torch.randn(tensor.shape, generator=draw) * 0.05
        if "norm" in key and key.endswith("weight"):
            value += 1
        made[key] = value.to(torch.bfloat16)
    words = None if said is None else {"config": json.dumps({"transformer": said})}
    return made, words


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _latents(frames: int, part: int = 1) -> torch.Tensor:
    return _draw(1, 16, frames, CLIP[2] // part, CLIP[3] // part)


def _told(name: str) -> dict[str, Any]:
    """What a prompt of the family carries."""
    frames = CLIP[1]
    one = {"reference_latents": [_latents(1)]}
    if name.startswith("humo"):
        return {**one, "audio_embed": _draw(1, frames, 8, 5, 1280)}
    if name == "s2v":
        sound = {"audio_embed": _draw(1, 25, 1024, 4 * frames)}
        return {**one, **sound, "control_video": _latents(frames), "reference_motion": _latents(19)}
    if name == "animate":
        return {
            "pose_video_latent": _latents(frames - 1),
            "face_video_pixels": _draw(1, 3, 1, 512, 512),
        }
    if name.startswith("scail"):
        masks = {
            "driving_mask_28ch": _draw(1, frames, 28, CLIP[2] // 2, CLIP[3] // 2),
            "ref_mask_28ch": _draw(1, frames + 1, 28, *CLIP[2:]),
        }
        pose = {"pose_video_latent": _latents(frames, 2)}
        return {**one, **pose, **(masks if name == "scail2" else {})}
    return {
        "fun-ref": one,
        "animate2": {"pose_video_latent": _latents(frames - 1)},
        "wandancer": {"audio_embed": _draw(1, 4 * frames, 35)},
        "in-context": {"context_latents": [_latents(2), _latents(1)]},
    }.get(name, {})


def given(name: str) -> dict[str, Any]:
    """What is sampled: a clip, and what it is conditioned on."""
    found: dict[str, Any] = {"clip": CLIP, "conditioning": _told(name)}
    if name in ("flf", "animate", "animate2", "scail", "scail2", "wandancer", "fun-ref"):
        tokens = 514 if name == "flf" else 257
        found["image"] = SimpleNamespace(penultimate_hidden_states=_draw(1, tokens, 1280))
    return found
