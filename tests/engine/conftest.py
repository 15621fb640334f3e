"""Fixtures of the engine's tests."""

import gc
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from cases import Shelf
from mutation_scenario import Scenario

from engine_seams import collect_pools


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Checkpoints of all families, written on first use."""
    return Shelf(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(autouse=True)
def announced_host_writes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the simulated accelerator the race detector sees the reader threads' writes, too."""
    names = [str(value) for value in getattr(request.node, "callspec", _NoParams).params.values()]
    if any(name.startswith("sim-") for name in names):
        from engine_seams import announce_host_writes

        announce_host_writes(monkeypatch, request.getfixturevalue("sim_module"))


@pytest.fixture
def capacity(
    sim: ModuleType, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int | None], None]]:
    """Sets the capacity of the device from now on, beside what is held now.

    The models are small: reserve and headroom are shares of it alone.
    """

    from blockswap.plan.choice import budgets
    from blockswap.plan.correction import promotion as correct

    monkeypatch.setattr(budgets, "LEAST_RESERVE_BYTES", 0)
    monkeypatch.setattr(correct, "LEAST_HEADROOM_BYTES", 0)
    mode = request.node.callspec.params["sim_device"].removeprefix("sim-")
    gc.collect()
    held = sim.counters().device_bytes

    def limit(nbytes: int | None) -> None:
        torch.accelerator.empty_cache()
        extra = {} if nbytes is None else {"capacity": held + nbytes}
        sim.configure(mode=mode, races="raise", poison=True, **extra)

    yield limit
    limit(None)


class _NoParams:
    params: dict[str, object] = {}


@pytest.fixture(params=["sim-eager", "sim-lazy"])
def scenario(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    sim_module: ModuleType,
    shelf: Shelf,
) -> Iterator[Scenario]:
    torch.set_num_threads(1)
    mode = request.param.removeprefix("sim-")
    sim_module.configure(mode=mode)
    sim_module.reset()
    found = Scenario(sim_module, mode, collect_pools(monkeypatch), shelf)
    yield found
    sim_module.configure(races="off", unrecorded_waits="off")
    sim_module.reset()
