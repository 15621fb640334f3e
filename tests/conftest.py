"""The compute devices of the suite: the CPU, and the simulated accelerator in both of its modes."""

import gc
import os

# Before torch is imported: the models are tiny, and worker threads that wake each other up for
# them cost many times what they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

# "preadv,O_DIRECT,posix_fadvise" makes this a platform without them, as Windows is. Nothing of ours
# is imported yet.
for _name in os.environ.get("BLOCKSWAP_TEST_WITHOUT", "").split(","):
    if hasattr(os, _name):
        delattr(os, _name)

DEVICES = ("cpu", "sim-eager", "sim-lazy")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Figures kept by tests stay with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOCKSWAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def cheap_collections() -> None:
    """Modules and tests of the whole suite are half a million objects: `gc.collect()`, which many
    tests and the engine call, looks at those alone that came after the file began.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def sim_module() -> ModuleType:
    """The `simaccel` package, built; skips where there is no compiler (never where CI is set)."""
    import simaccel

    reason = simaccel.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    return simaccel


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A torch.device that a test of stream, store, swap or adapters runs on."""
    yield from _opened(request.param, request)


@pytest.fixture(params=DEVICES[1:])
def sim_device(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The simulated accelerator only, in either mode."""
    yield from _opened(request.param, request)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing is compiled yet, and a function that is compiled too often is an error."""
    import torch

    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


@pytest.fixture
def sim(sim_device: Any, sim_module: ModuleType) -> ModuleType:
    """The `simaccel` package with its device open and its counters at zero."""
    return sim_module


def _opened(name: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    import torch

    torch.set_num_threads(1)
    if name == "cpu":
        yield torch.device("cpu")
        return
    simaccel = request.getfixturevalue("sim_module")
    simaccel.configure(mode=name.removeprefix("sim-"), races="raise", poison=True)
    simaccel.reset()
    try:
        yield torch.device("sim", 0)
        # A race that was raised in a reader thread, or swallowed on the way, still counts.
        assert simaccel.races() == []
    finally:
        simaccel.reset()
