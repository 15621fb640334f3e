"""ComfyUI's patcher and sampler over the simulated accelerator: bytes, capacity, ownership."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.model_management as management
import pytest
import quantised
import simulated
import tiny
import torch
from safetensors.torch import save_file
from tiny import swapped

from blockswap import BlockSwapArgs
from blockswap.nodes.clone.holding import holding_of
from blockswap.nodes.loading import load_streamed
from blockswap.nodes.runs.wish import Wish

BLOCKS = 30
STEPS = 2
FEW = 10
ROOM_FOR_A_FILE = 6 << 20


@pytest.fixture(autouse=True)
def _on_sim(sim_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from simulated.computing_on(sim_device, monkeypatch)


def kinds(kind: str, blocks: int = FEW) -> Any:
    weights = tiny.state_dict("t2v", blocks=blocks)
    if kind == "fp8_scaled":
        return tiny.loaded(tiny.fp8_scaled(weights))
    if kind == "mixed":
        return tiny.loaded(*tiny.mixed_fp8(weights))
    return tiny.loaded(weights)


@pytest.mark.parametrize("asked", [{}, {"blocks": "0-29"}, {"vram_budget": "2.8MiB"}])
def test_a_third_of_the_model_is_enough(asked: dict[str, Any], sim: ModuleType) -> None:
    plain = kinds("plain", BLOCKS)
    expected = tiny.sample(plain, steps=STEPS)
    usual = _traffic(sim, plain)
    management.unload_all_models()
    room = plain.model_size() // 3
    sim.configure(capacity=sim.counters().device_bytes + room, mode=_mode())
    model = swapped(plain, **asked)
    assert torch.equal(tiny.sample(model, steps=STEPS), expected)
    holding = holding_of(plain.model)
    assert holding is not None
    assert holding.plan.copied_bytes_per_forward > 0
    before = holding.swap.measured().counters
    now = _traffic(sim, model)
    after = holding.swap.measured().counters
    assert holding_of(plain.model) is holding  # bound once, for both runs
    copied = after.copied_bytes - before.copied_bytes
    forwards = after.forwards - before.forwards
    assert copied == forwards * holding.plan.copied_bytes_per_forward > 0
    # What else crosses the link are latents and conditions, as ever, and no weights.
    block = holding.plan.units[-1].slab_bytes
    assert now.h2d_bytes - copied - usual.h2d_bytes < block // 8
    assert now.d2h_bytes - usual.d2h_bytes < block // 8


def _traffic(sim: ModuleType, model: Any) -> Any:
    """Bytes over the link for one more run of a model that is loaded."""
    before = sim.counters()
    tiny.sample(model, steps=STEPS)
    after = sim.counters()
    return SimpleNamespace(
        h2d_bytes=after.h2d_bytes - before.h2d_bytes, d2h_bytes=after.d2h_bytes - before.d2h_bytes
    )


def _mode() -> str:
    return "lazy" if "lazy" in os.environ["PYTEST_CURRENT_TEST"] else "eager"


@pytest.mark.parametrize("kind", ["plain", "fp8_scaled"])
def test_with_a_lora(kind: str) -> None:
    plain = kinds(kind)
    for strength in (1.0, 0.4):
        patched = tiny.with_lora(plain, strength)
        expected = tiny.sample(patched)
        for asked in ({"blocks": "0,2-9"}, {"blocks_to_swap": FEW}):
            assert torch.equal(tiny.sample(swapped(patched, **asked)), expected)
    assert torch.equal(tiny.sample(patched), expected)


def test_unloading_gives_every_byte_back(sim: ModuleType) -> None:
    plain = kinds("plain")
    start = sim.counters()
    model = swapped(tiny.with_lora(plain, 0.5), blocks="1-8")
    tiny.sample(model)
    held = sim.counters()
    assert held.pinned_bytes > start.pinned_bytes
    management.unload_all_models()
    torch.accelerator.empty_cache()
    end = sim.counters()
    assert end.device_bytes <= start.device_bytes
    assert end.pinned_bytes == start.pinned_bytes
    assert all(p.device.type == "cpu" for p in plain.model.parameters())


def test_quantised_tensors() -> None:
    """ComfyUI cannot patch these on a device that has no fp8 arithmetic, so without a LoRA."""
    plain = kinds("mixed")
    expected = tiny.sample(plain)
    for asked in ({"blocks": "0,2-9"}, {"blocks_to_swap": FEW}):
        model = swapped(plain, **asked)
        assert torch.equal(tiny.sample(model), expected)
        assert torch.equal(tiny.sample(model), expected)
    assert torch.equal(tiny.sample(plain), expected)


@pytest.mark.parametrize("args", [{}, {"blocks": "0-19", "ram_budget": 0}, {"ram_budget": "1MiB"}])
def test_streamed_from_the_file(
    args: dict[str, Any], sim: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Computing with fp8 makes a cast weight at a time, as large as 1 MiB.
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 2 << 20)
    weights = tiny.fp8_scaled(tiny.state_dict("t2v", blocks=24))
    save_file(weights, tmp_path / "wan.safetensors")
    plain = tiny.loaded(weights)
    model = load_streamed(str(tmp_path / "wan.safetensors"), Wish(BlockSwapArgs(**args)))
    patched = tiny.with_lora(plain, 0.6)
    expected, expected_patched = tiny.sample(plain), tiny.sample(patched)
    management.unload_all_models()
    sim.configure(capacity=sim.counters().device_bytes + ROOM_FOR_A_FILE, mode=_mode())
    assert torch.equal(tiny.sample(model), expected)
    plan = holding_of(model.model).plan
    assert plan.streamed
    assert (plan.read_bytes_per_forward > 0) == ("ram_budget" in args)
    assert torch.equal(tiny.sample(tiny.with_lora(model, 0.6)), expected_patched)
    assert torch.equal(tiny.sample(model), expected)
    management.unload_all_models()
    units = [p for n, p in model.model.named_parameters() if ".blocks." in n]
    assert {p.device.type for p in units} == {"meta"}


@pytest.mark.parametrize("name", [*quantised.FORMATS, "metadata"])
def test_quantised_layers_from_the_file(name: str, sim: ModuleType, tmp_path: Path) -> None:
    weights, words = tiny.state_dict("t2v", blocks=FEW), None
    if name == "metadata":
        weights, words = tiny.mixed_fp8(weights)
    else:
        weights = quantised.comfy_quant(weights, (name,))
    save_file(weights, tmp_path / "wan.safetensors", words)
    expected = tiny.sample(tiny.loaded(weights, dict(words) if words else None))
    management.unload_all_models()
    for args in ({"blocks": "0-5", "ram_budget": "64MiB"}, {"blocks": "2-9", "ram_budget": 0}):
        model = load_streamed(str(tmp_path / "wan.safetensors"), Wish(BlockSwapArgs(**args)))
        assert torch.equal(tiny.sample(model), expected)
        plan = holding_of(model.model).plan
        assert (plan.read_bytes_per_forward > 0) == (args["ram_budget"] == 0)
        assert torch.equal(tiny.sample(model), expected)


def test_patching_does_not_gather_blocks_on_the_device(sim: ModuleType) -> None:
    """A LoRA on every block, on a device that holds a third of them: each goes back at once."""
    patched = tiny.with_lora(kinds("plain", BLOCKS), 0.6)
    expected = tiny.sample(patched)
    management.unload_all_models()
    room = patched.model_size() // 3
    sim.configure(capacity=sim.counters().device_bytes + room, mode=_mode())
    assert torch.equal(tiny.sample(swapped(patched)), expected)


def test_other_models_stay_where_there_is_room(sim: ModuleType) -> None:
    """The host finds room for residents and slots, not for blocks that never come."""
    other, plain = kinds("plain"), kinds("plain", BLOCKS)
    expected = tiny.sample(other)
    held = sim.counters().device_bytes
    sim.configure(capacity=held + plain.model_size() // 2, mode=_mode())
    model = swapped(plain, blocks="0-29")
    tiny.sample(model)
    loaded = [m.model for m in management.current_loaded_models]
    assert {id(m.model) for m in loaded} == {id(other.model), id(plain.model)}
    assert other.loaded_size() == other.model_size()
    assert torch.equal(tiny.sample(other), expected)
