"""Meshes in any order and shape, ranks that come late, and several models on one mesh."""

from pathlib import Path
from typing import Any

import pytest
from fleet import run_ranks, values

# Which of four ranks bring blocks together, by mesh and rank.
TOGETHER = {
    "turned": dict.fromkeys(range(4), "0123"),
    "grid": dict.fromkeys(range(4), "0123"),
    "inner": {0: "01", 1: "01", 2: "23", 3: "23"},
    "outer": {0: "02", 1: "13", 2: "02", 3: "13"},
    "two turned": {1: "12", 2: "12"},
}


@pytest.mark.parametrize("device", ["cpu", "sim-eager"])
def test_a_mesh_of_any_order_and_shape(device: str, sim_module: Any, tmp_path: Path) -> None:
    """Four ranks, each later than the one before; gathers come in the order of torch's group."""
    path = str(tmp_path / "m.safetensors")
    for rank, found in enumerate(values(run_ranks(4, "shapes", device=device, path=path))):
        wanted = {name: ranks[rank] for name, ranks in TOGETHER.items() if rank in ranks}
        assert {name: "".join(one["ranks"]) for name, one in found.items()} == wanted
        for name, one in found.items():
            assert one["equal"] == [True, True], name
            assert one["gathers"] >= 8, name


@pytest.mark.parametrize("device", ["cpu", "sim-lazy"])
def test_two_models_on_one_mesh(device: str, sim_module: Any) -> None:
    """In one order they gather; where each rank has its own, they go on alone, equal to the bit."""
    for found in values(run_ranks(2, "two_models", device=device)):
        assert found["one order"] == [True] * 4
        assert found["own orders"] == [True] * 5
        if device != "cpu":  # from memory nothing is brought there
            assert min(found["gathers"]) >= 8
        # In one group of torch's, a gather of one would be paired with another rank's of the other.
        assert found["groups"] == ([0, 0] if device == "cpu" else [2, 0])
