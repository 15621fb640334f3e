"""The shipped demo model, loaded once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from blockswap.demo.weights import load_resident


@pytest.fixture(scope="session")
def demo_model() -> Any:
    """Shipped values, computed in fp32: bf16 is a hundred times slower on many CPUs."""
    return load_resident(dtype=torch.float32)
