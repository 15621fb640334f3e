"""What callers do around a forward in pieces: the same bits, or whole with a sentence."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from clips import FAMILIES, clip, given, loaded, run, some_of
from torch.func import functional_call, grad, vmap

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.errors import StateError
from blockswap.pieces import Pieces

diffusers = pytest.importorskip("diffusers")

Call = Callable[[Any, dict[str, Any]], torch.Tensor]


def both_ways(
    family: str, call: Call, touch: Callable[[Any], None] = lambda model: None, **changes: Any
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """What a call gives on a touched model, whole and in pieces; and what was said."""
    workload = clip(family, **{"dtype": "float32", **changes})
    inputs, said = given(family, workload), list[str]()
    whole, cut = loaded(family, workload), loaded(family, workload)
    touch(whole)
    pieces = Pieces(cut, 64, said.append)
    touch(cut)
    found = call(whole, inputs), call(cut, inputs)
    assert torch.isfinite(found[0]).all()
    pieces.remove()
    return *found, said


def native_math(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with diffusers.attention_backend("_native_math"):
        return run(model, inputs)


def autocast(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return run(model, inputs)


def inference(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs)[0].clone()


def other_weights(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    weights = {name: weight * 1.5 for name, weight in model.named_parameters()}
    return run(lambda **named: functional_call(model, weights, (), named), inputs)


def mapped(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    both = torch.stack([inputs["hidden_states"], inputs["hidden_states"] / 2])
    with torch.no_grad():
        return vmap(lambda one: model(**{**inputs, "hidden_states": one})[0])(both)


def gradient(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    def total(latents: torch.Tensor) -> torch.Tensor:
        return model(**{**inputs, "hidden_states": latents})[0].sum()

    with torch.no_grad():
        return grad(total)(inputs["hidden_states"])


def odd_latents(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Latents that patches do not divide, channels last in memory."""
    channels, draw = inputs["hidden_states"].shape[1], torch.Generator().manual_seed(2)
    latents = torch.randn(1, 5, 13, 17, channels, generator=draw).movedim(4, 1)
    return run(model, {**inputs, "hidden_states": latents})


def one_time_for_two(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return run(model, {**inputs, "timestep": inputs["timestep"][:1]})


CALLS: dict[str, tuple[Call, dict[str, Any]]] = {
    "a backend": (native_math, {}),
    "autocast": (autocast, {}),
    "autocast of bf16": (autocast, {"dtype": "bfloat16"}),
    "inference": (inference, {}),
    "functional_call": (other_weights, {}),
    "vmap": (mapped, {}),
    "grad": (gradient, {}),
    "odd latents": (odd_latents, {}),
    "one time for two": (one_time_for_two, {"batch": 2}),
}
WITH_HINTS = ("autocast", "inference", "one time for two")


@pytest.mark.parametrize(
    ("family", "call"),
    some_of(
        [
            (family, call)
            for family in FAMILIES
            for call in CALLS
            if family == "t2v" or call in WITH_HINTS
        ],
        [*(("t2v", call) for call in CALLS), ("vace", "inference"), ("per-token", WITH_HINTS[2])],
    ),
)
def test_the_same_bits(family: str, call: str) -> None:
    how, changes = CALLS[call]
    whole, cut, said = both_ways(family, how, **changes)
    assert torch.equal(cut, whole)
    assert not said


def test_one_text_for_two() -> None:
    """The whole's attention spreads it over the batch in another kernel, which rounds otherwise."""

    def call(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        return run(model, {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"][:1]})

    whole, cut, said = both_ways("t2v", call, batch=2)
    assert torch.allclose(cut, whole, rtol=1e-4, atol=1e-5)
    assert not said


def backend(model: Any) -> None:
    model.set_attention_backend("native")


def fused(model: Any) -> None:
    model.fuse_qkv_projections()


def layers_cast(model: Any) -> None:
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)


def blocks_offloaded(model: Any) -> None:
    cpu = torch.device("cpu")
    model.enable_group_offload(cpu, cpu, offload_type="block_level", num_blocks_per_group=1)


def layers_offloaded(model: Any) -> None:
    model.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")


TOUCHED = {
    backend: None,
    fused: "the projections of its attn1 are fused",
    layers_cast: "the forward of its attn1.to_q was replaced by other code",
    blocks_offloaded: "the forward of a block was wrapped by other code",
    layers_offloaded: "the forward of its attn1.to_q was replaced by other code",
}


@pytest.mark.parametrize("touch", TOUCHED, ids=lambda touch: touch.__name__)
def test_what_diffusers_does_to_a_whole_model(touch: Callable[[Any], None]) -> None:
    whole, cut, said = both_ways("t2v", run, touch, dtype="bfloat16")
    assert torch.equal(cut, whole)
    why = TOUCHED[touch]
    assert bool(said) == (why is not None)
    assert why is None or any(why in sentence for sentence in said)


def test_a_lora_scaled_for_one_forward() -> None:
    peft = pytest.importorskip("peft")

    def adapted(model: Any) -> None:
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, target_modules=["to_q", "net.2"], init_lora_weights=False)
        model.add_adapter(config)
        model.eval()

    def call(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        scaled = run(model, {**inputs, "attention_kwargs": {"scale": 0.5}})
        assert not torch.equal(scaled, run(model, inputs))
        return scaled

    whole, cut, said = both_ways("t2v", call, adapted)
    assert torch.equal(cut, whole)
    assert not said


@pytest.mark.parametrize("where", ["blocks.1", "patch_embedding", "rope", "vace_blocks.0"])
@pytest.mark.parametrize("kind", ["register_forward_pre_hook", "register_forward_hook"])
def test_a_hook_that_comes_between_two_forwards(where: str, kind: str) -> None:
    """What it keeps is what it saw, though the forward before wrote into such tensors."""
    workload = clip("vace", dtype="float32")
    model, inputs = loaded("vace", workload), given("vace", workload)
    whole, said = run(model, inputs), list[str]()
    pieces = Pieces(model, 64, said.append)
    assert torch.equal(run(model, inputs), whole)
    assert not said
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(_: Any, *seen: Any) -> None:
        for one in seen:
            tensors = one if isinstance(one, tuple) else (one,)
            kept.extend((t, t.clone()) for t in tensors if isinstance(t, torch.Tensor))

    handle = getattr(model.get_submodule(where), kind)(keep)
    assert torch.equal(run(model, inputs), whole)
    assert kept
    assert all(torch.equal(tensor, before) for tensor, before in kept)
    assert len(said) == 1
    handle.remove()
    assert torch.equal(run(model, inputs), whole)
    assert len(said) == 1
    pieces.remove()


def test_a_model_in_pieces_is_not_copied() -> None:
    """Its copy would run the forward of the original."""
    model = loaded("t2v", clip("t2v"))
    args = BlockSwapArgs(blocks="0-2", chunk_tokens=64)
    with swap_blocks(model, args, device="cpu"), pytest.raises(StateError), nullcontext():
        copy.deepcopy(model)
    whole = copy.deepcopy(model)
    assert "forward" not in vars(whole)
    assert "forward" not in vars(whole.blocks[0])
