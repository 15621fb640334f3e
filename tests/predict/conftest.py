"""Every test of this folder has a cache of its own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that predictions are kept in."""
    monkeypatch.setenv("BLOCKSWAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
