"""On two real accelerators or more: shared memory is registered, gathers are the devices' own."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu
RANKS = str(Path(__file__).resolve().parents[1] / "ranks")


@pytest.mark.parametrize("pays", [True, False], ids=["in parts", "each all of it"])
def test_ranks_compute_as_one_process(
    accelerator: torch.device, tell: Callable[[str], None], pays: bool
) -> None:
    """Outputs are equal to the last bit; in parts each rank copies its share, else everything."""
    count = torch.accelerator.device_count()
    if count < 2 or accelerator.type == "sim":
        pytest.skip(f"ranks on accelerators of their own need two, and {count} is there")
    if RANKS not in sys.path:
        sys.path.append(RANKS)
    from fleet import run_ranks, values

    for one in values(run_ranks(2, "on_accelerators", pays=pays)):
        assert one["equal"] == [True] * 4
        assert (one["gathers"] >= 4 * 20) is pays
        share = one["copied"] / one["slabs"] / 4
        assert 0.45 < share < 0.6 if pays else 0.95 < share < 1.2
        assert "pinning failed" not in one["report"]
        tell(next(line for line in one["report"].splitlines() if "measured with all" in line))
