"""Compiled blocks with merged LoRAs: one graph for all blocks and strengths; no CUDA graphs."""

import pytest
import torch
from cases import expect_refusal
from lora_samples import adapter, forward, reference, saved, write
from test_loras_merged import ARGS, BF16
from torch._dynamo.testing import CompileCounter

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.errors import StateError

STRENGTHS = (1.0, 0.25, 0.0)


pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("before", [True, False])
def test_one_graph_for_all_blocks_steps_and_strengths(sim_device, sim, tmp_path, before):
    """Of a loaded model; from files: tests/formats/test_compiled.py."""
    folder = saved(tmp_path / "model", BF16)
    own = adapter("lora", 3)
    path = write(tmp_path / "a.safetensors", own)
    want = [
        forward(reference(folder, [(own, s)], BF16).to(sim_device), sim_device, BF16)
        for s in STRENGTHS
    ]
    counter = CompileCounter()
    model = reference(folder, [], BF16)
    if before:
        model.compile_repeated_blocks(backend=counter, fullgraph=True)
    with swap_blocks(model, BlockSwapArgs(**ARGS), device=sim_device, loras=[(path, 1.0)]) as swap:
        for block in () if before else model.blocks:
            block.compile(backend=counter, fullgraph=True)
        for strength, output in zip(STRENGTHS, want, strict=True):
            swap.set_loras([(path, strength)])
            for _ in range(2):
                assert torch.equal(forward(model, sim_device, BF16), output), strength
    assert counter.frame_count == 1


GRAPHS = {
    "reduce-overhead": {"mode": "reduce-overhead"},
    "max-autotune": {"mode": "max-autotune"},
    "an option": {"options": {"triton.cudagraphs": True}},
    "the backend": {"backend": "cudagraphs"},
}


@pytest.mark.parametrize("options", GRAPHS.values(), ids=GRAPHS)
def test_cuda_graphs_are_refused_before_and_after_swapping(sim_device, sim, tmp_path, options):
    folder = saved(tmp_path / "model", BF16)
    words = ("CUDA graphs", "max-autotune-no-cudagraphs")
    args = BlockSwapArgs(**ARGS)
    model = reference(folder, [], BF16)
    want = forward(reference(folder, [], BF16).to(sim_device), sim_device, BF16)
    whole = torch.compile(model, **options)
    expect_refusal(lambda: swap_blocks(whole, args, device=sim_device), StateError, *words)
    with swap_blocks(model, args, device=sim_device):
        assert torch.equal(forward(model, sim_device, BF16), want)
        model.blocks[1].compile(**options)
        expect_refusal(lambda: forward(model, sim_device, BF16), StateError, *words)
        model.blocks[1]._compiled_call_impl = None
        assert torch.equal(forward(model, sim_device, BF16), want)
    model.blocks[1].compile(**options)
    expect_refusal(lambda: swap_blocks(model, args, device=sim_device), StateError, *words)
    assert not hasattr(model, "blockswap")


def test_compiled_without_them_nothing_is_refused(sim_device, sim, tmp_path):
    model = reference(saved(tmp_path / "model", BF16), [], BF16)
    for block in model.blocks:
        block.compile(mode="max-autotune-no-cudagraphs")
    swap_blocks(model, BlockSwapArgs(**ARGS), device=sim_device).close()
