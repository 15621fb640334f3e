"""One device per process; every test starts from default options and zero, and leaves no race."""

from __future__ import annotations

import pytest
import torch

import simaccel as sim


@pytest.fixture(autouse=True)
def device():
    reason = sim.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    sim.configure()
    sim.reset()
    torch.accelerator.set_stream(torch.sim.default_stream())
    yield torch.device("sim")
    sim.reset()


@pytest.fixture(params=["eager", "lazy"])
def mode(request, device):
    """The test runs in both execution modes."""
    sim.configure(mode=request.param)
    return request.param
