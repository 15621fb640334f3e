"""Fixtures of the engine's tests."""

import pytest
from cases import Shelf


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Checkpoints of all families, written on first use."""
    return Shelf(tmp_path_factory.mktemp("checkpoints"))
