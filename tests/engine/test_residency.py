"""Units come and go while a swap runs: output, plan and bytes stay true in every order."""

import contextlib
import gc
import os
import random
from types import FrameType, ModuleType
from typing import Any

import pytest
import torch
from cases import SIM_STORES, Shelf, forward, fresh, opened, reference
from test_disk_faults import InterruptAt

from blockswap import BlockSwapArgs, Swap, swap_blocks
from blockswap.errors import StateError
from blockswap.swap.running.residency import Residency
from engine_seams import collect_residencies

# Every so many lines an interrupt; `make every-point` strikes more of them.
STRIDE = 149 if os.environ.get("BLOCKSWAP_EVERY_POINT") else 311

Sim = ModuleType


@pytest.fixture
def residencies(monkeypatch: pytest.MonkeyPatch) -> list[Residency]:
    return collect_residencies(monkeypatch)


def budget(family: str, residents: int, store: str = "ram") -> dict[str, Any]:
    """Two slots and a VRAM budget that holds `residents` blocks beside them (any may be streamed).

    With as many residents as there are blocks, all stay and there are no slots at first.
    """
    model = fresh(family)

    def padded(module: torch.nn.Module) -> int:
        return sum(-(-p.nbytes // 256) * 256 for p in module.parameters()) + 512

    blocks = list(model.blocks)  # type: ignore[arg-type]
    block = padded(blocks[0])
    sectors = 0 if store in ("ram", "pageable") else 2 * 4096  # slabs from a file are whole ones
    rest = padded(model) - sum(map(padded, blocks)) + 8 * 512
    whole = residents == len(blocks)
    slots = 0 if whole else 2 * (block + sectors)
    nbytes = rest + residents * block + slots
    return {"vram_budget": nbytes, "prefetch_blocks": 1}


def check(swap: Swap, sim: Sim, own: int) -> None:
    """The plan's bytes are those of the allocator, and its map that of the engine."""
    assert sim.counters().device_bytes - own == swap.plan.device_bytes
    assert {u.name: u.tier for u in swap.plan.units} == swap._streamer.tiers()


@pytest.mark.parametrize("store", SIM_STORES)
@pytest.mark.parametrize(("family", "residents"), [("mini", 5), ("original", 2)])
def test_promotions_and_demotions_in_any_order_are_bit_equal(
    family: str,
    residents: int,
    store: str,
    sim: Sim,
    sim_device: torch.device,
    shelf: Shelf,
    residencies: list[Residency],
) -> None:
    expected = reference(family, sim_device)
    gc.collect()
    sim.reset()
    base = sim.counters().device_bytes
    draw = random.Random(7)
    with (
        opened(store, family, sim_device, budget(family, residents, store), shelf=shelf) as (
            model,
            swap,
        ),
        torch.no_grad(),
    ):
        assert sim.counters().device_bytes - base == swap.plan.device_bytes
        forward(model, family, sim_device)
        own = sim.counters().device_bytes - swap.plan.device_bytes  # rope tables stay there
        residency = residencies[-1]
        assert len(swap.plan.residents) == (residents + 1)  # the text embedder stays
        seen = set()
        for turn in range(14):
            units = list(residency.units())
            names = draw.sample(units, draw.randrange(1, 4))
            leaving = [u.name for u in names if u.resident and u.demotable]
            joining = [u.name for u in names if not u.resident]
            assert residency.demote(leaving) == tuple(leaving)
            assert residency.promote(joining) == tuple(joining)
            check(swap, sim, own)
            with torch.inference_mode() if turn % 3 == 0 else torch.no_grad():
                out = forward(model, family, sim_device)
            assert torch.equal(out, expected), (turn, swap.plan.block_map())
            check(swap, sim, own)
            seen.add(swap.plan.block_map())
        assert len(seen) > 5
    assert sim.counters().device_bytes == own
    assert sim.counters().pinned_bytes == 0


class InterruptInChange(InterruptAt):
    """Also in the rooms that decide and wire a change."""

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        running = ("residency", "corrector", "departures", "out_of_memory")
        parts = ["/blockswap/st", "/swap/assembly/device_slabs"]
        parts += [f"/swap/running/{name}" for name in running]
        return self._line if any(part in frame.f_code.co_filename for part in parts) else None


@pytest.mark.parametrize(
    ("store", "stay"), [("ram", 2), ("ram", 5), ("pageable", 2), ("disk", 5), ("file-ram", 5)]
)
def test_ctrl_c_at_any_line_of_a_change_is_survived(
    store: str,
    stay: int,
    sim: Sim,
    sim_device: torch.device,
    shelf: Shelf,
    residencies: list[Residency],
) -> None:
    """A change and a retried forward are interrupted; what follows is right, bytes included."""
    expected = reference("mini", sim_device)
    gc.collect()  # what tests before this one left would go meanwhile
    base = sim.counters().device_bytes
    with (
        opened(store, "mini", sim_device, budget("mini", stay, store), shelf=shelf) as (
            model,
            swap,
        ),
        torch.no_grad(),
    ):
        residency = residencies[-1]
        assert len(swap.plan.residents) == stay + 1  # the text embedder stays
        for line in range(stay * 11 + len(store), 6000, STRIDE):  # each case strikes other lines
            residents = [unit.name for unit in residency.units() if unit.resident]
            others = [unit.name for unit in residency.units() if not unit.resident]
            model.blocks[3].fault = torch.OutOfMemoryError("out of memory") if line % 2 else None  # type: ignore[index, union-attr]
            with InterruptInChange(line) as interrupt:
                try:
                    residency.demote(residents[:1])
                    residency.promote(others[-2:])
                    with contextlib.suppress(torch.OutOfMemoryError):
                        forward(model, "mini", sim_device)
                except KeyboardInterrupt:
                    assert interrupt.raised
            model.blocks[3].fault = None  # type: ignore[index, union-attr]
            for _ in range(2):
                assert torch.equal(forward(model, "mini", sim_device), expected), line
            torch.accelerator.synchronize()
            gc.collect()
            check(swap, sim, base)
            if not interrupt.raised:
                break
            if not residents:
                residency.promote(others[:3])
        assert line > STRIDE * 3
    if store in ("ram", "pageable"):
        for name, value in fresh("mini").named_parameters():
            assert torch.equal(model.get_parameter(name), value), name
            assert model.get_parameter(name).device.type == "cpu"
    assert sim.counters().device_bytes == base
    assert sim.counters().pinned_bytes == 0


def test_weights_changed_on_the_device_stay_there(
    sim: Sim, sim_device: torch.device, shelf: Shelf, residencies: list[Residency]
) -> None:
    """A resident that other code has written to is not let go: the change would be lost."""
    with (
        opened("ram", "mini", sim_device, budget("mini", 2), shelf=shelf) as (model, swap),
        torch.no_grad(),
    ):
        residents = [unit.name for unit in residencies[-1].units() if unit.resident]
        changed, other = residents[:2]
        model.get_submodule(changed).norm3.bias.add_(1.0)  # type: ignore[operator, union-attr]
        before = forward(model, "mini", sim_device)
        assert residencies[-1].demote([changed, other]) == (other,)
        assert [u.demotable for u in residencies[-1].units() if u.name == changed] == [False]
        assert torch.equal(forward(model, "mini", sim_device), before)
        with pytest.warns(UserWarning, match="the change is lost"):
            swap.close()


def test_an_exact_selection_has_nothing_to_change(
    sim: Sim, sim_device: torch.device, residencies: list[Residency]
) -> None:
    for args in ({"blocks": "1,3"}, {"blocks_to_swap": 3}):
        with swap_blocks(fresh("mini"), args, device=sim_device) as swap, torch.no_grad():
            plan = swap.plan
            for _ in range(3):
                forward(swap.model, "mini", sim_device)
            assert swap.plan is plan
    with swap_blocks(fresh("mini"), BlockSwapArgs(blocks="1,3", vram_budget="1MiB"),
                     device=sim_device):  # fmt: skip
        assert [unit.name for unit in residencies[-1].units()] == ["blocks.1", "blocks.3"]
    assert len(residencies) == 1


@pytest.mark.parametrize("store", ["disk", "file-ram"])
def test_state_dict_follows_the_place_of_the_weights(
    store: str, sim: Sim, sim_device: torch.device, shelf: Shelf, residencies: list[Residency]
) -> None:
    with (
        opened(store, "mini", sim_device, budget("mini", 2, store), shelf=shelf) as (model, swap),
        torch.no_grad(),
    ):
        residency = residencies[-1]
        resident = next(unit.name for unit in residency.units() if unit.resident)
        wanted = fresh("mini").get_submodule(resident).state_dict()
        for _ in range(2):
            found = model.get_submodule(resident).state_dict()
            assert all(torch.equal(found[name].cpu(), wanted[name]) for name in wanted)
            residency.demote([resident])
            if swap.plan.tier_of(resident) == "disk":
                with pytest.raises(StateError, match="streamed from"):
                    model.get_submodule(resident).state_dict()
            residency.promote([resident])
            forward(model, "mini", sim_device)
