"""A synthesised model computes: finite, and different when any block is exchanged."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from blockswap.layout.geometry import VARIANTS, WanGeometry
from blockswap.synth import synth

TINY = WanGeometry(
    dim=64, ffn_dim=96, num_layers=4, num_heads=4, in_channels=4, out_channels=4, text_dim=24
)


def model_of(geometry: WanGeometry, path: Path) -> WanTransformer3DModel:
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=geometry.num_heads,
            attention_head_dim=geometry.head_dim,
            in_channels=geometry.in_channels,
            out_channels=geometry.out_channels,
            text_dim=geometry.text_dim,
            freq_dim=geometry.freq_dim,
            ffn_dim=geometry.ffn_dim,
            num_layers=geometry.num_layers,
        )
    rope = WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=geometry.head_dim,
        num_layers=0,
        ffn_dim=1,
        text_dim=1,
    ).rope
    model.load_state_dict(load_file(path), assign=True)
    model.rope = rope
    return model.eval()


@torch.no_grad()
def forward(
    model: WanTransformer3DModel, geometry: WanGeometry, dtype: torch.dtype
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, geometry.in_channels, 2, 4, 4, generator=generator).to(dtype)
    text = torch.randn(1, 7, geometry.text_dim, generator=generator).to(dtype)
    return model(latents, torch.tensor([500]), text, return_dict=False)[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_forward_is_finite_and_alive(tmp_path: Path, dtype: str) -> None:
    synth(TINY, tmp_path / "f.safetensors", dtype=dtype, naming="diffusers")
    element = getattr(torch, dtype)
    out = forward(model_of(TINY, tmp_path / "f.safetensors"), TINY, element).float()
    assert out.isfinite().all()
    assert 0.05 < out.std() < 20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exchanging_two_blocks_shows_in_the_output(tmp_path: Path, dtype: str) -> None:
    synth(TINY, tmp_path / "f.safetensors", dtype=dtype, naming="diffusers")
    model, element = model_of(TINY, tmp_path / "f.safetensors"), getattr(torch, dtype)
    true = forward(model, TINY, element)
    for i in range(TINY.num_layers):
        for j in range(i):
            order = list(range(TINY.num_layers))
            order[i], order[j] = j, i
            blocks = model.blocks
            model.blocks = torch.nn.ModuleList([blocks[k] for k in order])
            assert not torch.equal(forward(model, TINY, element), true), (i, j)
            model.blocks = blocks


@pytest.mark.slow
def test_a_model_of_full_depth_and_width_stays_finite(tmp_path: Path) -> None:
    geometry = replace(VARIANTS["wan2.1-t2v-1.3b"], num_layers=30)
    synth(geometry, tmp_path / "f.safetensors", naming="diffusers")
    model = model_of(geometry, tmp_path / "f.safetensors")
    out = forward(model, geometry, torch.bfloat16).float()
    assert out.isfinite().all()
    assert 0.05 < out.std() < 20
