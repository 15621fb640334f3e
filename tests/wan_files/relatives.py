"""Tiny files of Wan's family, made from diffusers' classes, under the names of their vendors."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from blockswap.layout.geometry import to_original_key

SIZES: dict[str, Any] = dict(
    num_attention_heads=2,
    attention_head_dim=128,
    in_channels=4,
    out_channels=4,
    text_dim=32,
    freq_dim=32,
    ffn_dim=64,
    num_layers=4,
)
_IMAGE: dict[str, Any] = dict(image_dim=40, added_kv_proj_dim=256)
# What diffusers has: class, what it is made with beside SIZES, what is stated where shapes do not
# tell.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "T2V, Phantom, ATI": ("WanTransformer3DModel", {}),
    "I2V, SkyReels-V2 I2V": ("WanTransformer3DModel", {"in_channels": 12, **_IMAGE}),
    "Fun-InP, Wan 2.2 I2V": ("WanTransformer3DModel", {"in_channels": 12}),
    "Fun-Control": ("WanTransformer3DModel", {"in_channels": 16, **_IMAGE}),
    "VACE": ("WanVACETransformer3DModel", {"vace_layers": [0, 2], "vace_in_channels": 8}),
    "SkyReels-V2 DF": ("SkyReelsV2Transformer3DModel", {"inject_sample_info": True}),
    "Animate": (
        "WanAnimateTransformer3DModel",
        {
            **_IMAGE,
            "in_channels": 12,
            "latent_channels": 4,
            "motion_encoder_channel_sizes": {str(2**n): 4 for n in range(2, 10)},
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 16,
            "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
    ),
}
_MOTION = (
    (r"motion_encoder\.motion_synthesis_weight", "motion_encoder.dec.direction.weight"),
    (r"motion_encoder\.conv_in\.weight", "motion_encoder.enc.net_app.convs.0.0.weight"),
    (r"motion_encoder\.conv_in\.act_fn\.bias", "motion_encoder.enc.net_app.convs.0.1.bias"),
    (r"motion_encoder\.conv_out\.weight", "motion_encoder.enc.net_app.convs.8.weight"),
    (r"motion_encoder\.motion_network", "motion_encoder.enc.fc"),
)
_IN_BLOCK = {
    "conv1.weight": "conv1.0.weight", "conv1.act_fn.bias": "conv1.1.bias",
    "conv2.weight": "conv2.1.weight", "conv2.act_fn.bias": "conv2.2.bias",
    "conv_skip.weight": "skip.1.weight",
}  # fmt: skip
_FACE = (("norm_k", "k_norm"), ("norm_q", "q_norm"), ("to_q", "linear1_q"), ("to_out", "linear2"))


def made(family: str) -> Any:
    """The model, with weights drawn anew; fp32."""
    import diffusers

    name, more = FAMILIES[family]
    torch.manual_seed(5)
    model: Any = getattr(diffusers, name)(**SIZES | more).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.15, 0.15)
    return model


def vendor_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of diffusers' names as the vendor's files spell it."""
    found, halves = {}, {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"(face_adapter\.\d+)\.to_([kv])\.(\w+)", name):
            halves[match[1], match[2], match[3]] = tensor
            continue
        key, own = _vendor_name(name), tensor
        if "net_app.convs" in key and key.endswith(".bias"):
            own = tensor.view(1, -1, 1, 1)
        found[key] = own
    for (stem, part, end), tensor in halves.items():
        if part == "k":
            both = torch.cat([tensor, halves[stem, "v", end]])
            found[f"{_fuser(stem)}.linear1_kv.{end}"] = both
    return {key: tensor.contiguous() for key, tensor in found.items()}


def _vendor_name(name: str) -> str:
    for pattern, vendor in _MOTION:
        name = re.sub(pattern, vendor, name)
    if match := re.fullmatch(r"motion_encoder\.res_blocks\.(\d+)\.(.+)", name):
        stem = f"motion_encoder.enc.net_app.convs.{int(match[1]) + 1}"
        return f"{stem}.{_IN_BLOCK[match[2]]}"
    if name.startswith("face_adapter."):
        for library, vendor in _FACE:
            name = name.replace(f".{library}.", f".{vendor}.")
        return _fuser(name)
    name = re.sub(r"^face_encoder\.(conv\w+)\.", r"face_encoder.\1.conv.", name)
    name = name.replace("fps_projection.net.0.proj.", "fps_projection.0.")
    name = name.replace("fps_projection.net.2.", "fps_projection.2.")
    return to_original_key(name)


def _fuser(name: str) -> str:
    return name.replace("face_adapter.", "face_adapter.fuser_blocks.", 1)


def save(path: Path, family: str, dtype: torch.dtype, *, prefix: str = "") -> Path:
    """The family's file in its vendor's names."""
    tensors = vendor_names(made(family).state_dict())
    save_file({prefix + key: tensor.to(dtype) for key, tensor in tensors.items()}, path)
    return path


def inputs(family: str, device: torch.device) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(3)
    more = FAMILIES[family][1]

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(torch.bfloat16).to(device)

    frames = 3 if family == "Animate" else 2
    given: dict[str, Any] = dict(
        hidden_states=drawn(1, more.get("in_channels", 4), frames, 8, 8),
        encoder_hidden_states=drawn(1, 7, 32),
        timestep=torch.tensor([437], device=device),
        return_dict=False,
    )
    if "image_dim" in more:
        given["encoder_hidden_states_image"] = drawn(1, 257, 40)
    if family == "VACE":
        given["control_hidden_states"] = drawn(1, 8, 2, 8, 8)
    if family == "SkyReels-V2 DF":
        given["fps"] = torch.tensor([1], device=device)
    if family == "Animate":
        given["pose_hidden_states"] = drawn(1, 4, 2, 8, 8)
        given["face_pixel_values"] = drawn(1, 3, 5, 512, 512)
    return given


def forward(model: Any, family: str, device: torch.device) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(**inputs(family, device))[0].cpu()
    return out
