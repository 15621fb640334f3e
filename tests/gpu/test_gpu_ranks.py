"""On two real accelerators or more: shared memory is registered, gathers are the devices' own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

pytestmark = pytest.mark.gpu
RANKS = str(Path(__file__).resolve().parents[1] / "ranks")


@pytest.fixture
def run(accelerator: torch.device, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a scenario of tests/ranks, each rank with an accelerator of its own and not forked."""
    count = torch.accelerator.device_count()
    if count < 2 or accelerator.type == "sim":
        pytest.skip(f"ranks on accelerators of their own need two, and {count} is there")
    own = dist.get_default_backend_for_device(accelerator)
    monkeypatch.setenv("BLOCKSWAP_RANKS_BACKEND", f"cpu:gloo,{accelerator.type}:{own}")
    monkeypatch.syspath_prepend(RANKS)
    import fleet

    return lambda scenario, **options: fleet.run_fresh_ranks(2, scenario, **options)


@pytest.mark.parametrize("pays", [True, False], ids=["in parts", "each all of it"])
def test_ranks_compute_as_one_process(run: Any, tell: Callable[[str], None], pays: bool) -> None:
    """Outputs are equal to the last bit; in parts each rank copies its share, else everything."""
    from fleet import values

    for one in values(run("on_accelerators", pays=pays)):
        assert one["equal"] == [True] * 4
        assert (one["gathers"] >= 4 * 20) is pays
        share = one["copied"] / one["slabs"] / 4
        assert 0.45 < share < 0.6 if pays else 0.95 < share < 1.2
        assert "pinning failed" not in one["report"]
        tell(next(line for line in one["report"].splitlines() if "measured with all" in line))


def test_gathers_run_beside_the_collectives_of_a_forward(run: Any, tmp_path: Path) -> None:
    from fleet import values

    for found in values(run("beside_own_collectives", folder=str(tmp_path))):
        for store, one in found.items():
            assert all(one["equal"]), store
            assert one["gathers"] >= 20 * 4, store
            assert not one["said"], store


def test_two_models_gather_in_groups_of_their_own(run: Any) -> None:
    from fleet import values

    for found in values(run("two_models", device="own")):
        assert all(found["one order"] + found["own orders"])
        assert found["groups"] == [2, 0]


@pytest.mark.parametrize("store", ["memory", "file"])
def test_ranks_that_part_go_on_alone(run: Any, store: str, tmp_path: Path) -> None:
    """The last of them is killed in a forward."""
    from fleet import values

    path = str(tmp_path / "m.safetensors") if store == "file" else ""
    other, killed = run("apart", path=path, accelerators=True)
    assert killed.code == -9
    for what, one in values([other])[0].items():
        assert all(one["equal"]), what
        assert len(one["said"]) == 1, what
