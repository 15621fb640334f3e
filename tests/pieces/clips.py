"""Small models of every family whose forwards run in pieces, and clips for them."""

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from blockswap.layout.geometry import WanGeometry
from blockswap.plan.inputs.workload import Workload
from blockswap.predict.wan import forward_inputs, torch_dtype, typed_skeleton

ALL = os.environ.get("BLOCKSWAP_PIECES") == "all"
more = pytest.mark.skipif(not ALL, reason="one of a kind is in CI; make test-pieces runs all")


def some_of(cases: Iterable[Any], in_ci: Iterable[Any]) -> list[Any]:
    """All cases, of which those that are not `in_ci` run with `make test-pieces` alone."""
    chosen = list(in_ci)
    every = list(dict.fromkeys(cases))
    assert set(chosen) <= set(every), "a case in CI is one of them"
    return [
        case if case in chosen
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=more)
        for case in every
    ]  # fmt: skip


TINY = WanGeometry(
    dim=48,
    ffn_dim=96,
    num_layers=4,
    num_heads=2,
    in_channels=4,
    out_channels=4,
    text_dim=32,
    freq_dim=32,
)
FAMILIES = {
    "t2v": TINY,
    "i2v": replace(TINY, in_channels=9, image_dim=40, added_kv=True),
    "flf2v": replace(TINY, in_channels=9, image_dim=40, added_kv=True, pos_embed_seq_len=514),
    "vace": replace(TINY, vace_layers=(0, 2), vace_in_channels=8),
    "per-token": TINY,
}


def clip(family: str, **changes: Any) -> Workload:
    """128x96, 17 frames: 240 tokens."""
    usual = Workload(128, 96, 17, kernels="portable", per_token_timestep=family == "per-token")
    return replace(usual, **changes)


def loaded(family: str, workload: Workload) -> Any:
    """The model of a family with random weights, the same each time."""
    geometry = FAMILIES[family]
    model = typed_skeleton(geometry, torch_dtype(workload.dtype))
    draw = torch.Generator().manual_seed(len(family))
    for name, parameter in list(model.named_parameters()):
        place = model.get_submodule(name.rpartition(".")[0])
        values = torch.randn(parameter.shape, generator=draw).mul(0.2).to(parameter.dtype)
        place._parameters[name.rpartition(".")[2]] = torch.nn.Parameter(values, requires_grad=False)
    return model


def given(
    family: str, workload: Workload, device: torch.device | str = "cpu", seed: int = 0
) -> dict[str, Any]:
    """Random inputs of the workload; of a timestep for each token, the first quarter's is 0."""
    draw = torch.Generator().manual_seed(seed)
    inputs: dict[str, Any] = {}
    for name, value in forward_inputs(FAMILIES[family], workload).items():
        if not isinstance(value, torch.Tensor):
            inputs[name] = value
        elif name == "timestep":
            steps = torch.full(value.shape, 321.0 - seed)
            if value.dim() == 2:
                steps[:, : value.shape[1] // 4] = 0
            inputs[name] = steps.to(value.dtype).to(device)
        else:
            drawn = torch.randn(value.shape, generator=draw)
            inputs[name] = drawn.to(value.dtype).to(device)
    return inputs


def run(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(**inputs)[0]
    return output


def small_sizes(tokens: int) -> tuple[int, ...]:
    """In the place of the sizes for real models."""
    return tuple(size for size in (128, 64) if size < tokens)
