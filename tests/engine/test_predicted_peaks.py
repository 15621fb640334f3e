"""What was predicted without data is what the simulated accelerator's allocator and clock report.

The whole model is resident. Peaks and FLOPs are compared for equality: nothing is rounded, and
nothing that the device allocates in a forward is unknown to the prediction.
"""

from dataclasses import replace
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import fresh, inputs
from peaks import expect, loaded, measured, on_device
from torch.nn import functional as F

from blockswap.layout.geometry import WanGeometry
from blockswap.plan.inputs.workload import Workload
from blockswap.predict import predict_module
from blockswap.predict.vae_chunks import record_vae
from blockswap.predict.wan import follow_forward, forward_inputs, torch_dtype, typed_skeleton

TINY = WanGeometry(
    dim=48,
    ffn_dim=96,
    num_layers=3,
    num_heads=3,
    in_channels=4,
    out_channels=4,
    text_dim=32,
    freq_dim=32,
)
GEOMETRIES = {
    "t2v": TINY,
    "i2v": replace(TINY, in_channels=9, image_dim=40, added_kv=True),
    "flf2v": replace(TINY, in_channels=9, image_dim=40, added_kv=True, pos_embed_seq_len=514),
    "vace": replace(TINY, vace_layers=(0, 2), vace_in_channels=8),
}
PLAIN = Workload(128, 64, 9, kernels="portable")
WORKLOADS = {
    "fp32": replace(PLAIN, dtype="float32"),
    "bf16": replace(PLAIN, width=96, height=96, frames=21),
    "fp16-cfg": replace(PLAIN, batch=2, dtype="float16"),
    "one-frame": replace(PLAIN, frames=1, text_tokens=600),
    "per-token": replace(PLAIN, batch=2, per_token_timestep=True),
}
GRID = [pair for pair in product(GEOMETRIES, WORKLOADS) if pair != ("vace", "per-token")]
eager = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)


@eager
@pytest.mark.parametrize(("family", "workload"), GRID)
def test_diffusers_models(
    sim: ModuleType, sim_device: torch.device, family: str, workload: str
) -> None:
    geometry, wanted = GEOMETRIES[family], WORKLOADS[workload]
    cost = follow_forward(geometry, wanted)
    model = loaded(typed_skeleton(geometry, torch_dtype(wanted.dtype))).to(sim_device)
    expect(
        cost,
        *measured(sim, model, lambda: on_device(forward_inputs(geometry, wanted), sim_device)),
    )


@eager
@pytest.mark.parametrize(("dtype", "shape"), [("fp32", 0), ("bf16", 1), ("mixed", 2)])
@pytest.mark.parametrize("family", ["original", "original-i2v", "original-vace"])
def test_models_laid_out_as_the_original(
    sim: ModuleType, sim_device: torch.device, family: str, dtype: str, shape: int
) -> None:
    model = fresh(family, dtype)
    given = inputs(family, torch.device("cpu"), shape=shape)
    cost = predict_module(model, kwargs=given, kernels="portable")
    model.to(sim_device)
    expect(cost, *measured(sim, model, lambda: inputs(family, sim_device, shape=shape)))


@eager
@pytest.mark.parametrize(("family", "dtype"), [("t2v", "float32"), ("i2v", "bfloat16")])
def test_attention_by_products(
    sim: ModuleType,
    sim_device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    dtype: Any,
) -> None:
    geometry, wanted = GEOMETRIES[family], replace(PLAIN, dtype=dtype, attention="math")
    cost = follow_forward(geometry, wanted)
    flash = follow_forward(geometry, replace(wanted, attention="flash"))
    assert cost.activation_bytes > flash.activation_bytes

    def by_products(query: Any, key: Any, value: Any, mask: Any = None, *_: Any, **__: Any) -> Any:
        return torch.ops.aten._scaled_dot_product_attention_math(query, key, value, mask)[0]

    model = loaded(typed_skeleton(geometry, torch_dtype(dtype))).to(sim_device)
    monkeypatch.setattr(F, "scaled_dot_product_attention", by_products)
    expect(
        cost,
        *measured(sim, model, lambda: on_device(forward_inputs(geometry, wanted), sim_device)),
    )


def tiny_vae(device: str, *, residual: bool) -> Any:
    from diffusers import AutoencoderKLWan

    config: dict[str, Any] = {"base_dim": 8, "z_dim": 4}
    if residual:
        config |= {"decoder_base_dim": 12, "is_residual": True, "in_channels": 12}
        config |= {"out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}
    with torch.device(device):
        vae = AutoencoderKLWan(**config).eval()
    for parameter in vae.parameters():
        parameter.requires_grad_(False)
    return vae


@eager
@pytest.mark.parametrize(
    ("task", "residual"), [("decode", False), ("encode", False), ("decode", True), ("encode", True)]
)
def test_the_vae(sim: ModuleType, sim_device: torch.device, task: str, residual: bool) -> None:
    size = (4, 6, 8)
    cost = record_vae(tiny_vae("meta", residual=residual), task, size, tiled=False)
    vae = tiny_vae("cpu", residual=residual).to(sim_device)
    scale = vae.spatial_compression_ratio
    shape = (1, 4, *size) if task == "decode" else (1, 3, 13, 6 * scale, 8 * scale)
    work = vae.decode if task == "decode" else vae.encode
    peak, _ = measured(
        sim, lambda x: work(x, return_dict=False), lambda: {"x": torch.ones(shape).to(sim_device)}
    )
    assert cost.activation_bytes == peak
