"""A whole diffusers Wan transformer, and diffusers' own offloading, on the device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import simaccel as sim

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.usefixtures("device")


def tiny_wan(layers: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()


def inputs(device: str) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(1, 4, 2, 8, 8, generator=generator).to(device),
        "timestep": torch.tensor([500]).to(device),
        "encoder_hidden_states": torch.randn(1, 7, 16, generator=generator).to(device),
        "return_dict": False,
    }


@torch.no_grad()
def test_forward_is_that_of_the_cpu_and_repeatable(mode):
    model = tiny_wan()
    expected = model(**inputs("cpu"))[0]
    model.to("sim")
    arguments = inputs("sim")
    torch.accelerator.synchronize()
    sim.reset()
    result = model(**arguments)[0]
    assert sim.counters().host_syncs == 0
    assert sim.counters().pageable_copies == 0
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(**arguments)[0], result)
    with torch.autocast("sim", dtype=torch.bfloat16):
        rough = model(**arguments)[0].float()
    torch.testing.assert_close(rough.cpu(), expected, rtol=0.2, atol=0.1)
    assert sim.races() == []


def test_training_step(mode):
    model = tiny_wan(1).to("sim")
    model(**inputs("sim"))[0].square().mean().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert all(grad.isfinite().all() for grad in grads)


@torch.no_grad()
def test_compile():
    model = tiny_wan(1).to("sim")
    expected = model(**inputs("sim"))[0]
    assert torch.equal(torch.compile(model, backend="eager")(**inputs("sim"))[0], expected)


@torch.no_grad()
def test_fake_tensors_run_nothing():
    with FakeTensorMode(), torch.device("sim"):
        model = tiny_wan(2)
        arguments = {
            "hidden_states": torch.empty(1, 4, 2, 8, 8),
            "timestep": torch.empty(1, dtype=torch.int64),
            "encoder_hidden_states": torch.empty(1, 7, 16),
            "return_dict": False,
        }
        result = model(**arguments)[0]
    assert (result.shape, result.device) == ((1, 4, 2, 8, 8), torch.device("sim:0"))
    assert sim.counters().ops == 0
    assert sim.counters().device_allocations == 0


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"use_stream": True},
        {"use_stream": True, "record_stream": True},
        {"use_stream": False},
    ],
    ids=["stream", "record_stream", "no stream"],
)
def test_group_offloading_of_diffusers(mode, options):
    model = tiny_wan()
    expected = copy.deepcopy(model).to("sim")(**inputs("sim"))[0]
    diffusers.hooks.apply_group_offloading(
        model,
        onload_device=torch.device("sim"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        **options,
    )
    for _ in range(2):
        assert torch.equal(model(**inputs("sim"))[0], expected)
    assert sim.races() == []
    assert (sim.counters().pinned_allocations > 0) == options["use_stream"]
