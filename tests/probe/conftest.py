"""Every test of the probe keeps its figures in a folder of its own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, empty and not made yet."""
    folder = tmp_path_factory.mktemp("user") / "cache"
    monkeypatch.setenv("BLOCKSWAP_CACHE", str(folder))
    return folder
