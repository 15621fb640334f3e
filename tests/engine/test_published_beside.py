"""VAEs and text encoders beside published models: predictions are the device's own figures.

Each class runs small, with the latents or the tokens that its family's record makes. Peaks of VAEs
are those of the simulated accelerator; what the published encoders hold is what their files hold.
"""

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from peaks import loaded, measured, on_device

from blockswap.adapters.hosts.empty_models import empty_encoder, empty_model
from blockswap.plan.inputs.workload import Workload
from blockswap.predict.published_beside import predict_published_vae
from blockswap.predict.published_forward import made
from blockswap.published import FAMILIES, Part, resolved, sizes_of
from blockswap.published import encoders as known

_BLOCKS = (8, 8, 16, 16)
SMALL: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {"block_out_channels": _BLOCKS, "norm_num_groups": 4},
    "AutoencoderKLFlux2": {"block_out_channels": _BLOCKS, "norm_num_groups": 4},
    "AutoencoderKLQwenImage": {"base_dim": 8},
    "AutoencoderKLWan": {"base_dim": 8},
    "AutoencoderKLHunyuanVideo": {"block_out_channels": _BLOCKS, "norm_num_groups": 4},
    "AutoencoderKLLTX2Video": {
        "block_out_channels": (8, 16, 32, 64),
        "decoder_block_out_channels": (8, 16, 32),
    },
    "AutoencoderKLMiniMaxH3": {
        "block_out_channels": (8, 8, 8, 8, 8, 8),
        "norm_num_groups": 4,
        "decoder_num_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_attention_head_dim": 32,
    },
}
# The simulated accelerator has no attention with the mask of HunyuanVideo 1.5's VAE.
FOLLOWED = sorted(set(FAMILIES) - {"HunyuanVideo15Transformer3DModel"})
# Parameters of the files, as their pages count them; of HunyuanVideo's ByT5 and Llama, which are
# parts of larger files, and of Qwen3-VL's, whose head is left out, no count is published.
PARAMETERS = {
    "QWEN25_VL_7B": 8_292_166_656,
    "QWEN3_4B": 4_022_468_096,
    "MISTRAL_SMALL_24B": 24_011_361_280,
    "GEMMA3_12B": 12_187_325_040,
    "T5_XXL": 4_762_310_656,
    "CLIP_L": 123_060_480,
}


@pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
@pytest.mark.parametrize("family", FOLLOWED)
def test_the_peak_of_decoding(sim: ModuleType, sim_device: torch.device, family: str) -> None:
    dtype: Any = "float32" if family.startswith("Flux2") else "bfloat16"
    record = FAMILIES[family]
    name = record.vae.class_name
    record = replace(record, vae=Part(name, {**record.vae.config, **SMALL[name]}))
    grid = record.grid
    clip = Workload(
        4 * grid.pixels, 3 * grid.pixels, grid.first + grid.step, dtype=dtype,
        kernels="portable", text_tokens=70, grid=grid,
    )  # fmt: skip
    cost = predict_published_vae(record, clip, tiled=False, dtype=dtype)
    vae: Any = loaded(empty_model(name, record.vae.config, getattr(torch, dtype))).to(sim_device)
    latents = made(resolved(record.latents, sizes_of(record, {}, clip)), dtype)
    given = {"z": latents, "return_dict": False}
    peak, flops = measured(sim, vae.decode, lambda: on_device(given, sim_device))
    assert cost.activation_bytes == peak
    assert flops == pytest.approx(cost.flops, rel=1e-6)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_encoder_holds_what_its_files_hold(name: str) -> None:
    part = getattr(known, name)
    model = empty_encoder(part.class_name, part.config, torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
