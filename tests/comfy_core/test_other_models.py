"""Models of other families in ComfyUI's own classes: latents are those without it."""

from collections import Counter
from typing import Any

import comfy.ldm.flux.model as flux
import comfy.ldm.hunyuan_video.model as hunyuan
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import pytest
import torch

from blockswap import BlockSwapArgs
from blockswap.adapters.live import describe_module
from blockswap.errors import SelectionError
from blockswap.nodes.clone.holding import holding_of
from blockswap.nodes.clone.patcher import swap_on_clone
from blockswap.nodes.runs.wish import Wish

_FLUX: dict[str, Any] = dict(
    image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=32,
    context_in_dim=48, hidden_size=64, mlp_ratio=2.0, num_heads=2, depth=2, depth_single_blocks=4,
    axes_dim=[8, 12, 12], theta=10000, qkv_bias=True, guidance_embed=True,
)  # fmt: skip
# What newer cores ask beside, as they find it in a file of these families.
_NEWER = {"txt_ids_dims": [], "meanflow_sum": False}


def _asked(params: Any) -> dict[str, Any]:
    return {name: value for name, value in _NEWER.items() if name in params.__annotations__}


# The class of `supported_models`, its configuration, the latent's shape, the text's width, units.
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int, dict[str, int]]] = {
    "flux": (
        "Flux",
        _FLUX | _asked(flux.FluxParams),
        (1, 16, 8, 8),
        48,
        {"double_blocks": 2, "single_blocks": 4},
    ),
    "qwen-image": (
        "QwenImage",
        dict(
            image_model="qwen_image", in_channels=64, out_channels=16, num_layers=4,
            attention_head_dim=32, num_attention_heads=2, joint_attention_dim=48,
            axes_dims_rope=(8, 12, 12),
        ),
        (1, 16, 1, 8, 8),
        48,
        {"transformer_blocks": 4},
    ),
    "ltx-video": (
        "LTXV",
        dict(
            image_model="ltxv", in_channels=128, cross_attention_dim=64, attention_head_dim=32,
            num_attention_heads=2, caption_channels=48, num_layers=4,
        ),
        (1, 128, 2, 4, 4),
        48,
        {"transformer_blocks": 4},
    ),
    "hunyuan-video": (
        "HunyuanVideo",
        dict(
            {k: v for k, v in _FLUX.items() if k not in ("context_in_dim", "depth")},
            image_model="hunyuan_video", context_in_dim=48, depth=3, patch_size=[1, 2, 2],
            guidance_embed=False, byt5=False, meanflow=False, use_cond_type_embedding=False,
            vision_in_dim=None, **_asked(hunyuan.HunyuanVideoParams),
        ),
        (1, 16, 1, 8, 8),
        48,
        {"txt_in.individual_token_refiner.blocks": 2, "double_blocks": 3, "single_blocks": 4},
    ),
}  # fmt: skip


def model(family: str) -> Any:
    """A patcher of a small model with random weights."""
    kind, unet_config, _, _, _ = FAMILIES[family]
    config = getattr(comfy.supported_models, kind)(dict(unet_config))
    config.set_inference_dtype(torch.bfloat16, None)
    with torch.inference_mode(False):
        made = config.get_model({}, "")
        draw = torch.Generator().manual_seed(4)
        for name, weight in made.diffusion_model.named_parameters():
            value = torch.randn(weight.shape, generator=draw) * 0.05
            weight.data.copy_(value + 1 if name.endswith((".scale", "norm.weight")) else value)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(made, load_device=cpu, offload_device=cpu)


def sample(patcher: Any, family: str) -> torch.Tensor:
    _, _, shape, width, _ = FAMILIES[family]
    draw = torch.Generator().manual_seed(5)
    noise = torch.randn(shape, generator=draw)
    said = {"pooled_output": torch.randn(1, 32, generator=draw), "guidance": 3.5}
    if family == "ltx-video":
        said["attention_mask"] = torch.ones(1, 7, dtype=torch.int64)
    texts = [[[torch.randn(1, 7, width, generator=draw), dict(said)]] for _ in range(2)]
    return comfy.sample.sample(
        patcher, noise, 2, 3.0, "euler", "simple", *texts, torch.zeros_like(noise),
        disable_pbar=True, seed=3,
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_another_family_is_equal_to_the_last_bit(family: str) -> None:
    plain = model(family)
    units = describe_module(plain.model.diffusion_model).layout.units
    assert Counter(unit.list_name for unit in units) == FAMILIES[family][4]
    expected = sample(plain, family)
    assert torch.isfinite(expected).all()
    assert expected.abs().sum() > 0
    last = units[-1].list_name
    for args in ({"blocks": f"{last}:1,{last}:3"}, {"blocks_to_swap": 3}, {}):
        swapped = swap_on_clone(plain, Wish(BlockSwapArgs(**args)))
        assert torch.equal(sample(swapped, family), expected), args
        holding = holding_of(plain.model)
        assert holding is not None
        if "blocks" in args:
            assert holding.plan.streamed == (f"{last}.1", f"{last}.3")
    assert torch.equal(sample(plain.clone(), family), expected)
    assert holding_of(plain.model) is None
    with pytest.raises(SelectionError, match=r"Invalid range: 'layers:0': the model has the lists"):
        swap_on_clone(plain, Wish(BlockSwapArgs(blocks="layers:0")))
