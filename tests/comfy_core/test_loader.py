"""The low-RAM loader: the same latents, and no block in memory that is not running."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file

from blockswap import BlockSwapArgs
from blockswap.nodes.holding import holding_of
from blockswap.nodes.loading import load_streamed
from blockswap.nodes.patcher import Wish


def saved(path: Path, weights: dict[str, Any], metadata: dict[str, str] | None = None) -> str:
    file = path / "wan.safetensors"
    save_file(weights, file, metadata)
    return str(file)


def opened(path: str, **args: Any) -> Any:
    return load_streamed(path, Wish(BlockSwapArgs(**args)))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    weights = tiny.state_dict(family)
    expected = tiny.sample(tiny.loaded(weights))
    path = saved(tmp_path, weights)
    for args in ({}, {"blocks": "0,2-4"}, {"blocks_to_swap": 3, "offload_txt_emb": True}):
        model = opened(path, **args)
        assert torch.equal(tiny.sample(model), expected), args
        holding = holding_of(model.model)
        assert holding is not None
        assert holding.plan.read_bytes_per_forward > 0
        assert torch.equal(tiny.sample(model), expected), args


@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp8_scaled", "prefixed"])
def test_forms_of_checkpoint_with_a_lora(kind: str, tmp_path: Path) -> None:
    weights = tiny.state_dict("t2v", torch.float16 if kind == "fp16" else torch.bfloat16)
    if kind == "fp8_scaled":
        weights = tiny.fp8_scaled(weights)
    plain = tiny.loaded(weights)
    if kind == "prefixed":
        weights = {f"model.diffusion_model.{key}": value for key, value in weights.items()}
    model = opened(saved(tmp_path, weights), blocks="0-3")
    assert torch.equal(tiny.sample(model), tiny.sample(plain))
    for strength in (1.0, 0.4):
        expected = tiny.sample(tiny.with_lora(plain, strength))
        assert torch.equal(tiny.sample(tiny.with_lora(model, strength)), expected)
    assert torch.equal(tiny.sample(model), tiny.sample(plain))


def test_blocks_have_no_memory_between_runs(tmp_path: Path) -> None:
    import comfy.model_management

    model = opened(saved(tmp_path, tiny.state_dict("t2v")))
    tiny.sample(model)
    comfy.model_management.unload_all_models()
    root = model.model.diffusion_model
    where = {name: p.device.type for name, p in root.named_parameters()}
    assert {d for n, d in where.items() if n.startswith("blocks.")} == {"meta"}
    assert where["head.head.weight"] == "cpu"
    assert holding_of(model.model) is None
    assert torch.isfinite(tiny.sample(model)).all()
