"""Latents with block swap are those without it, to the last bit, on ComfyUI's own sampler."""

from typing import Any

import pytest
import tiny
import torch
from tiny import swapped

from blockswap.nodes.clone.holding import holding_of

ASKED: dict[str, dict[str, Any]] = {
    "list": {"blocks": "0,2,3-5"},
    "count": {"blocks_to_swap": 3, "vace_blocks_to_swap": 1, "offload_txt_emb": True},
    "automatic": {},
}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_and_every_way_of_asking(family: str) -> None:
    plain = tiny.model(family)
    expected = tiny.sample(plain)
    assert torch.isfinite(expected).all()
    assert expected.abs().sum() > 0
    streamed = {}
    for name, args in ASKED.items():
        assert torch.equal(tiny.sample(swapped(plain, **args)), expected), name
        holding = holding_of(plain.model)
        assert holding is not None
        assert holding.swap is not None
        counters = holding.swap.measured().counters
        assert counters.forwards > 0
        streamed[name] = len([n for n in holding.plan.streamed if n.startswith("blocks.")])
    assert streamed == {"list": 5, "count": 3, "automatic": 0}
    # The model itself, and a clone without the node, are the host's again.
    assert torch.equal(tiny.sample(plain.clone()), expected)
    assert holding_of(plain.model) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes(dtype: torch.dtype) -> None:
    plain = tiny.model("t2v", dtype)
    expected = tiny.sample(plain)
    assert torch.equal(tiny.sample(swapped(plain, blocks="1-4")), expected)


def _quantised(kind: str) -> Any:
    weights = tiny.state_dict("t2v")
    if kind == "fp8_scaled":
        return tiny.loaded(tiny.fp8_scaled(weights))
    if kind == "mixed":
        return tiny.loaded(*tiny.mixed_fp8(weights))
    return tiny.loaded(weights)


@pytest.mark.parametrize("kind", ["plain", "fp8_scaled", "mixed"])
def test_lora_at_two_strengths(kind: str) -> None:
    plain = _quantised(kind)
    before = {k: v.clone() for k, v in _bytes(plain).items()}
    bare = tiny.sample(plain)
    assert torch.equal(tiny.sample(swapped(plain, blocks="0,2-4")), bare)
    seen = [bare]
    for strength in (1.0, 0.4):
        patched = tiny.with_lora(plain, strength)
        expected = tiny.sample(patched)
        assert not any(torch.equal(expected, other) for other in seen)
        seen.append(expected)
        # The LoRA may come before the node or after it.
        assert torch.equal(tiny.sample(swapped(patched, blocks="0,2-4")), expected)
        after = tiny.with_lora(swapped(plain, blocks_to_swap=4), strength)
        assert torch.equal(tiny.sample(after), expected)
        # A second one on top.
        twice = tiny.with_lora(patched, 0.7, seed=12)
        expected_twice = tiny.sample(twice)
        assert torch.equal(tiny.sample(swapped(twice, blocks="1-5")), expected_twice)
    assert torch.equal(tiny.sample(swapped(plain, blocks="0,2-4")), bare)
    assert torch.equal(tiny.sample(plain), bare)
    comfy_unload()
    left = _bytes(plain)
    assert left.keys() == before.keys()
    assert all(torch.equal(left[key], before[key]) for key in before)


def comfy_unload() -> None:
    import comfy.model_management

    comfy.model_management.unload_all_models()


def _bytes(patcher: Any) -> dict[str, torch.Tensor]:
    from blockswap.store.leaves import leaf_tensors

    return {
        f"{key}/{'.'.join(path)}": leaf.detach().reshape(-1).view(torch.uint8)
        for key, parameter in patcher.model.named_parameters()
        for path, leaf in leaf_tensors(
            parameter.data if type(parameter) is torch.nn.Parameter else parameter
        )
    }
