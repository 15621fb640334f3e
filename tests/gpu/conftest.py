"""Tests for a real accelerator: skipped, with the reason, where there is none.

    make test-gpu         # or: pytest tests/gpu -m gpu

They prove in real time what the simulated accelerator proves on its virtual clock, and print what
they measured.
"""

import os
from collections.abc import Callable

import pytest
import torch
from heavy import Scale

# For trying out these tests themselves: runs them on the simulator, in real time.
TRY_ON_SIMULATOR = "BLOCKSWAP_GPU_TESTS_ON_SIM"
_figures: list[str] = []

Tell = Callable[[str], None]


def _why_not() -> str | None:
    if os.environ.get(TRY_ON_SIMULATOR):
        return None
    if not torch.accelerator.is_available():
        return "no accelerator is there (torch.accelerator.is_available() is False)"
    present = torch.accelerator.current_accelerator()
    if present is None or present.type == "sim":
        return "the accelerator of this process is the simulated one: run tests/gpu by itself"
    return None


@pytest.fixture(scope="session")
def accelerator() -> torch.device:
    """The accelerator of this machine."""
    reason = _why_not()
    if reason is not None:
        pytest.skip(reason)
    if os.environ.get(TRY_ON_SIMULATOR):
        import simaccel

        simaccel.ensure()
        simaccel.configure(clock="real", h2d_gb_s=0.02, verify_pinned=False)
    present = torch.accelerator.current_accelerator()
    assert present is not None
    return torch.device(present.type, torch.accelerator.current_device_index())


@pytest.fixture(scope="session")
def scale(accelerator: torch.device) -> Scale:
    """How large the models of the timing tests are."""
    return Scale.small() if accelerator.type == "sim" else Scale.of(accelerator)


@pytest.fixture
def tell() -> Tell:
    """Adds a line to what is printed at the end of the run."""
    return _figures.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures:
        terminalreporter.section("measured on this machine")
        for line in _figures:
            terminalreporter.write_line(line)
