"""Whose code a forward is: its own package's, wherever that lies, or somebody else's."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from blockswap.pieces.replaced import Works, why_replaced

BLOCK = """
import torch

def helped(x):
    return x * 2

class Block(torch.nn.Module):
    def forward(self, x):
        return helped(x)
"""


@pytest.fixture(params=["one folder", "several folders", "a module"])
def block(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A package without a file of its own is made of all folders of its name: ComfyUI's is."""
    home = "block_of_a_host" if request.param == "a module" else "block_of_a_host.model"
    for folder in ("first", "second", "third"):
        place = tmp_path / folder
        place.mkdir()
        if request.param != "a module":
            (place / "block_of_a_host").mkdir()
        monkeypatch.syspath_prepend(place)
        if request.param == "one folder":
            break
    if request.param == "several folders":
        place = tmp_path / "second"
    (place / (home.replace(".", "/") + ".py")).write_text(BLOCK)
    importlib.invalidate_caches()
    yield importlib.import_module(home).Block()
    for name in [name for name in sys.modules if name.startswith("block_of_a_host")]:
        del sys.modules[name]


def test_its_own_code_is_its_own(block: Any) -> None:
    assert why_replaced(block) is None
    assert Works(block).changed() is None


def test_somebody_elses_is_told(block: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    works, space = Works(block), sys.modules[type(block).__module__]
    with monkeypatch.context() as patch:
        patch.setattr(space, "helped", lambda x: x * 3)
        assert "helped was replaced by other code" in str(why_replaced(block))
        assert "helped" in str(works.changed())
    with monkeypatch.context() as patch:
        patch.setattr(type(block), "forward", lambda self, x: torch.relu(x))
        assert "the forward of Block was replaced" in str(why_replaced(block))
        assert "the forward of Block" in str(works.changed())
    assert why_replaced(block) is None
    assert works.changed() is None
