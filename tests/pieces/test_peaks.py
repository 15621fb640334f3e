"""On the simulated accelerator: the peak in pieces is as predicted, and less room will do."""

import gc
from dataclasses import replace
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from clips import FAMILIES, clip, given, loaded, run, small_sizes

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.pieces import Pieces
from blockswap.predict.wan import follow_forward, follow_in_pieces

eager = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
CLIPS = {
    "bf16": {},
    "fp32": {"dtype": "float32"},
    "batch-2": {"batch": 2},
    "longer": {"frames": 41},
}
# Each family with each size of two; the other two for a family with and one without hints.
GRID = [*product(FAMILIES, ("bf16", "batch-2")), *product(("t2v", "vace"), ("fp32", "longer"))]


def peak_of(model: Any, inputs: dict[str, Any]) -> int:
    """Bytes above the weights at the peak of one forward, its inputs counted."""
    torch.accelerator.synchronize()
    torch.accelerator.reset_peak_memory_stats()
    out = run(model, inputs)
    torch.accelerator.synchronize()
    del out
    return torch.accelerator.max_memory_allocated()


@eager
@pytest.mark.parametrize(("family", "size"), GRID)
def test_predicted_peak_is_the_measured_one(
    sim: ModuleType, sim_device: torch.device, family: str, size: str
) -> None:
    workload = clip(family, **CLIPS[size])
    sim.configure()
    sim.reset()
    model = loaded(family, workload).to(sim_device)
    whole = follow_forward(FAMILIES[family], workload).activation_bytes
    for tokens in (64, 128):
        gc.collect()
        weights = torch.accelerator.memory_allocated()
        inputs = given(family, workload, sim_device)
        pieces = Pieces(model, tokens, print)
        measured = peak_of(model, inputs) - weights
        pieces.remove()
        predicted = follow_in_pieces(FAMILIES[family], workload, tokens)
        assert measured == pytest.approx(predicted, rel=0.01)
        assert predicted < whole
        del inputs


@eager
def test_a_clip_runs_in_pieces_where_the_whole_has_no_room(
    sim: ModuleType, sim_device: torch.device
) -> None:
    workload = clip("t2v", frames=41)
    expected = run(loaded("t2v", workload), given("t2v", workload))
    cut = follow_in_pieces(FAMILIES["t2v"], workload, 64)
    for tokens in (0, 64):
        gc.collect()
        sim.configure()
        torch.accelerator.empty_cache()
        held = sim.counters().device_bytes
        model = loaded("t2v", workload)
        args = BlockSwapArgs(blocks="0-3", chunk_tokens=tokens)
        with swap_blocks(model, args, device=sim_device) as swap:
            room = swap.plan.device_bytes + cut + cut // 50
            sim.configure(capacity=held + room)
            inputs = given("t2v", workload, sim_device)
            if tokens:
                got = run(model, inputs).cpu()
                assert torch.equal(got, expected)
                assert swap.plan.chunk_tokens == tokens
                assert "pieces of at most 64 tokens, as asked" in str(swap.report())
            else:
                with pytest.raises(torch.OutOfMemoryError):
                    run(model, inputs)
            del inputs
        sim.configure()


@eager
def test_out_of_memory_makes_pieces_smaller_before_residents_leave(
    sim: ModuleType, sim_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = clip("t2v", frames=41)
    expected = run(loaded("t2v", workload), given("t2v", workload))
    cut = follow_in_pieces(FAMILIES["t2v"], workload, 64)
    monkeypatch.setattr("blockswap.pieces.install.sizes_below", small_sizes)
    gc.collect()
    sim.configure()
    torch.accelerator.empty_cache()
    held = sim.counters().device_bytes
    model = loaded("t2v", workload)
    with swap_blocks(model, BlockSwapArgs(vram_budget="1GiB"), device=sim_device) as swap:
        residents = swap.plan.residents
        assert residents
        assert swap.plan.chunk_tokens is None
        sim.configure(capacity=held + swap.plan.device_bytes + cut + cut // 50)
        inputs = given("t2v", workload, sim_device)
        assert torch.equal(run(model, inputs).cpu(), expected)
        assert swap.plan.chunk_tokens in (64, 128)
        assert swap.plan.residents == residents
        told = " ".join(swap.plan.sentences)
        assert "ran out of memory" in told
        assert "tokens from now on, and it was run again" in told
        assert torch.equal(run(model, inputs).cpu(), expected)
        del inputs
        sim.configure()
    assert "forward" not in vars(model.blocks[0])


@eager
def test_never_in_pieces_lets_residents_go_instead(
    sim: ModuleType, sim_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = clip("t2v", frames=41)
    monkeypatch.setattr("blockswap.pieces.install.sizes_below", small_sizes)
    cut = follow_in_pieces(FAMILIES["t2v"], workload, 64)
    gc.collect()
    sim.configure()
    torch.accelerator.empty_cache()
    held = sim.counters().device_bytes
    model = loaded("t2v", workload)
    args = BlockSwapArgs(vram_budget="1GiB", chunk_tokens=0)
    with swap_blocks(model, args, device=sim_device) as swap:
        sim.configure(capacity=held + swap.plan.device_bytes + cut + cut // 50)
        inputs = given("t2v", workload, sim_device)
        with pytest.raises(torch.OutOfMemoryError):
            run(model, inputs)
        assert swap.plan.chunk_tokens == 0
        del inputs
        sim.configure()


def test_flops_in_pieces_are_those_of_the_whole() -> None:
    from blockswap.predict import predict_module
    from blockswap.predict.wan import forward_inputs, torch_dtype, typed_skeleton

    for family in ("t2v", "i2v", "flf2v", "vace"):
        workload = replace(clip(family), kernels="cuda")
        geometry = FAMILIES[family]
        model = typed_skeleton(geometry, torch_dtype(workload.dtype))
        whole = predict_module(model, kwargs=forward_inputs(geometry, workload))
        pieces = Pieces(model, 64, print)
        cut = predict_module(model, kwargs=forward_inputs(geometry, workload))
        pieces.remove()
        assert cut.flops_by_unit == whole.flops_by_unit
        assert cut.rest_flops == whole.rest_flops
        assert cut.activation_bytes < whole.activation_bytes
