"""Fixtures of the engine's tests."""

import pytest
from cases import Shelf


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Checkpoints of all families, written on first use."""
    return Shelf(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(autouse=True)
def announced_host_writes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the simulated accelerator the race detector sees the reader threads' writes, too."""
    names = [str(value) for value in getattr(request.node, "callspec", _NoParams).params.values()]
    if any(name.startswith("sim-") for name in names):
        from seams import announce_host_writes

        announce_host_writes(monkeypatch, request.getfixturevalue("sim_module"))


class _NoParams:
    params: dict[str, object] = {}
