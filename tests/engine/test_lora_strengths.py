"""`Swap.set_loras`: other strengths between forwards, each time as a model freshly merged so."""

import gc

import pytest
import torch
from cases import expect_refusal
from lora_samples import adapter, forward, reference, saved, write
from test_loras_merged import ARGS, BF16, opened

from blockswap import BlockSwapArgs, open_experts, open_transformer
from blockswap.errors import StateError

STRENGTHS = ((1.0, 0.0), (0.5, -0.25), (0.0, 0.0), (0.5, 0.5))


@pytest.fixture
def files(tmp_path):
    """Two LoRAs of different kinds: on streamed blocks, on a resident, and outside the blocks."""
    made = [adapter("dora", 3), adapter("loha", 4)]
    return made, [write(tmp_path / f"{n}.safetensors", own) for n, own in enumerate(made)]


def wanted(folder, made, device):
    return [
        forward(
            reference(folder, list(zip(made, pair, strict=True)), BF16).to(device), device, BF16
        )
        for pair in STRENGTHS
    ]


@pytest.mark.parametrize("store", ["memory", "disk", "ram"])
def test_a_hundred_changes(sim_device, sim, tmp_path, files, store):
    made, paths = files
    folder = saved(tmp_path / "model", BF16)
    want = wanted(folder, made, sim_device)
    assert len({tuple(output.flatten().tolist()) for output in want}) == 4
    gc.collect()
    before = torch.accelerator.memory_allocated()
    model = opened(store, folder, BF16, sim_device, list(zip(paths, (0.1, 0.2), strict=True)))
    swap = model.blockswap
    for change in range(100):
        pair = STRENGTHS[change % 4]
        swap.set_loras(list(zip(paths, pair, strict=True)))
        if change % 9 < 4:
            assert torch.equal(forward(model, sim_device, BF16), want[change % 4]), change
    torch.accelerator.synchronize()
    gc.collect()
    assert torch.accelerator.memory_allocated() - before == swap.plan.device_bytes
    assert any("at other strengths" in said for said in swap.plan.sentences)
    swap.close()
    expect_refusal(lambda: swap.set_loras([]), StateError, "is closed")


def test_on_the_cpu_from_its_file(tmp_path, files):
    made, paths = files
    folder, cpu = saved(tmp_path / "model", BF16), torch.device("cpu")
    want = wanted(folder, made, cpu)
    model = open_transformer(folder, BlockSwapArgs(**ARGS), device=cpu, loras=paths)
    with model.blockswap as swap:
        for pair, output in zip(STRENGTHS, want, strict=True):
            swap.set_loras(list(zip(paths, pair, strict=True)))
            assert torch.equal(forward(model, cpu, BF16), output), pair


def test_of_one_expert(sim_device, sim, tmp_path, files):
    made, paths = files
    folder = saved(tmp_path / "model", BF16)
    want = wanted(folder, made, sim_device)
    both = [list(zip(paths, STRENGTHS[1], strict=True))] * 2
    high, low = open_experts([folder] * 2, BlockSwapArgs(**ARGS), device=sim_device, loras=both)
    high.blockswap.set_loras(list(zip(paths, STRENGTHS[3], strict=True)))
    for _ in range(2):
        assert torch.equal(forward(high, sim_device, BF16), want[3])
        assert torch.equal(forward(low, sim_device, BF16), want[1])
    for model in (high, low):
        model.blockswap.close()
