"""The shipped file: size, names, dtypes, what it says of itself."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file
from torch import Tensor

from blockswap.demo.latents import CHANNELS, COORDINATES
from blockswap.demo.prompt import TEXT_DIM, VOCABULARY
from blockswap.demo.weights import load_resident, read_metadata, weights_path


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(weights_path())


def test_file_is_at_most_ten_megabytes() -> None:
    assert 1_000_000 < weights_path().stat().st_size <= 10_000_000


def test_names_are_those_of_the_original_wan(tensors: dict[str, Tensor]) -> None:
    outside = {name for name in tensors if not name.startswith("blocks.")}
    linears = "patch_embedding text_embedding.0 text_embedding.2 time_embedding.0 time_embedding.2"
    linears += " time_projection.1 head.head"
    wanted = {f"{name}.{part}" for name in linears.split() for part in ("weight", "bias")}
    assert outside == wanted | {"head.modulation"}
    first = {name.removeprefix("blocks.0.") for name in tensors if name.startswith("blocks.0.")}
    assert {"modulation", "norm3.weight", "ffn.0.weight", "ffn.2.bias"} < first
    assert {"self_attn.q.weight", "cross_attn.o.bias", "cross_attn.norm_q.weight"} < first
    for index in range(1, 8):
        prefix = f"blocks.{index}."
        assert {n.removeprefix(prefix) for n in tensors if n.startswith(prefix)} == first


def test_shapes_follow_from_width_and_vocabulary(tensors: dict[str, Tensor]) -> None:
    width = tensors["blocks.0.self_attn.q.weight"].shape[0]
    assert tensors["blocks.0.modulation"].shape == (1, 6, width)
    assert tensors["head.modulation"].shape == (1, 2, width)
    assert tensors["patch_embedding.weight"].shape == (width, CHANNELS + COORDINATES, 1, 2, 2)
    assert tensors["head.head.weight"].shape == (4 * CHANNELS, width)
    assert tensors["text_embedding.0.weight"].shape == (width, TEXT_DIM)


def test_dtypes_are_those_diffusers_gives_a_wan_model(tensors: dict[str, Tensor]) -> None:
    kept = set(WanTransformer3DModel._keep_in_fp32_modules)
    for name, tensor in convert_wan_transformer_to_diffusers(dict(tensors)).items():
        wanted = torch.float32 if kept & set(name.split(".")) else torch.bfloat16
        assert tensor.dtype == wanted, name
        assert bool(torch.isfinite(tensor).all()), name
    for name in ("blocks.3.modulation", "blocks.3.norm3.weight", "time_embedding.0.bias"):
        assert tensors[name].dtype == torch.float32


def test_metadata_tells_what_cannot_be_read_off_the_tensors() -> None:
    metadata = read_metadata()
    assert metadata["wan.num_heads"] == "3"
    assert metadata["licence"] == "Apache-2.0"
    assert metadata["title"]
    assert "steps" in metadata["training"]
    assert tuple(json.loads(metadata["blockswap.demo.vocabulary"])) == VOCABULARY
    assert json.loads(metadata["blockswap.demo.clip"]) == [9, 32, 32]


def test_it_loads_as_a_plain_diffusers_model_and_keeps_every_value(
    tensors: dict[str, Tensor],
) -> None:
    model = load_resident()
    assert isinstance(model, WanTransformer3DModel)
    assert len(model.blocks) == 8
    assert not any(parameter.requires_grad for parameter in model.parameters())
    state = model.state_dict()
    for name, tensor in convert_wan_transformer_to_diffusers(dict(tensors)).items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name
