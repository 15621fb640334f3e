"""The benchmarks are run from the checkout, and so are their tests."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)


@pytest.fixture
def clock(sim_module: ModuleType) -> Iterator[ModuleType]:
    """The simulator, left as other tests expect it: its defaults, everything at zero."""
    yield sim_module
    sim_module.configure()
    sim_module.reset()
