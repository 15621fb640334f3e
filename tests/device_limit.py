"""The simulated accelerator with a capacity, for pipelines whose models take turns there."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch


@pytest.fixture
def limit(sim_device: Any, sim_module: Any, monkeypatch: Any) -> Iterator[Callable[[int], None]]:
    """Gives the simulated accelerator this many bytes beside those that it holds now."""
    from blockswap.plan.choice import budgets
    from blockswap.plan.correction import promotion

    monkeypatch.setattr(budgets, "LEAST_RESERVE_BYTES", 0)
    monkeypatch.setattr(promotion, "LEAST_HEADROOM_BYTES", 0)

    def set_limit(nbytes: int | None) -> None:
        gc.collect()
        torch.accelerator.empty_cache()
        held = sim_module.counters().device_bytes
        extra = {} if nbytes is None else {"capacity": held + nbytes}
        sim_module.configure(races="raise", poison=True, **extra)

    yield set_limit
    set_limit(None)
