"""An out-of-memory in a forward is survived, to the last bit, and said."""

import gc
import inspect
import re
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hungry_model import BLOCK_BYTES, build, expected, given, seeded, swapped

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.swap.running.out_of_memory import asked_bytes
from blockswap.units import parse_bytes

STORES = ("ram", "disk")
SEEDS = list(range(10, 18))


@pytest.mark.parametrize("store", STORES)
def test_capacity_cut_by_a_third_in_the_middle_of_a_run(
    store: str, sim_device: torch.device, capacity: Any, tmp_path: Path
) -> None:
    wanted = expected(sim_device, SEEDS)
    x = given(sim_device)
    capacity(18 * BLOCK_BYTES)
    with swapped(store, sim_device, tmp_path, BlockSwapArgs()) as (model, swap), torch.no_grad():
        model.scratch(blocks=BLOCK_BYTES)
        for number, seed in enumerate(SEEDS):
            if number == 3:
                before = len(swap.plan.residents)
                capacity(12 * BLOCK_BYTES)
            assert torch.equal(seeded(model, x, seed), wanted[number]), number
        assert model.calls > len(SEEDS)
        assert len(swap.plan.residents) < before
        assert any("ran out of memory" in sentence for sentence in swap.plan.sentences)
        assert any("no longer stay" in line for line in swap.report().lines())


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("where", ["first", "middle", "last", "head"])
def test_out_of_memory_anywhere_is_survived(
    where: str, store: str, sim_device: torch.device, capacity: Any, tmp_path: Path
) -> None:
    wanted = expected(sim_device, SEEDS[:3])
    x = given(sim_device)
    capacity(20 * BLOCK_BYTES)
    args = BlockSwapArgs(vram_budget=14 * BLOCK_BYTES)
    with swapped(store, sim_device, tmp_path, args) as (model, swap), torch.no_grad():
        residents = len(swap.plan.residents)
        assert torch.equal(seeded(model, x, SEEDS[0]), wanted[0])
        hunger = 10 * BLOCK_BYTES
        if where == "head":
            model.scratch(head=hunger)
        else:
            model.scratch(blocks={{"first": 0, "middle": 6, "last": 11}[where]: hunger})
        counts = []
        for number in (1, 2, 1):
            assert torch.equal(seeded(model, x, SEEDS[number]), wanted[number]), number
            counts.append(len(swap.plan.residents))
        assert model.calls == 5, "one retry, and none once the residents are gone"
        assert 0 < counts[0] < residents
        assert counts[0] - 3 <= counts[1] == counts[2], "the headroom is restored, no more"


@pytest.mark.parametrize("store", STORES)
def test_everything_resident_makes_slots_when_it_must_let_go(
    store: str, sim: ModuleType, sim_device: torch.device, capacity: Any, tmp_path: Path
) -> None:
    wanted = expected(sim_device, SEEDS)
    x = given(sim_device)
    capacity(40 * BLOCK_BYTES)
    before = sim.counters().device_bytes
    with swapped(store, sim_device, tmp_path, BlockSwapArgs()) as (model, swap), torch.no_grad():
        assert (swap.plan.slots, swap.plan.streamed) == (0, ())
        assert torch.equal(seeded(model, x, SEEDS[0]), wanted[0])
        model.scratch(blocks={4: 32 * BLOCK_BYTES})
        for number, seed in enumerate(SEEDS):
            assert torch.equal(seeded(model, x, seed), wanted[number]), number
        assert swap.plan.slots == 3
        assert swap.plan.streamed
        assert swap.plan.prefetch == 2
        assert sim.counters().device_bytes - before == swap.plan.device_bytes
    assert sim.counters().device_bytes == before
    assert sim.counters().pinned_bytes == 0


@pytest.mark.parametrize("store", STORES)
def test_what_never_fits_is_raised_with_what_was_tried(
    store: str, sim_device: torch.device, capacity: Any, tmp_path: Path
) -> None:
    wanted = expected(sim_device, SEEDS[:1])
    x = given(sim_device)
    capacity(20 * BLOCK_BYTES)
    args = BlockSwapArgs(vram_budget=14 * BLOCK_BYTES)
    with swapped(store, sim_device, tmp_path, args) as (model, swap), torch.no_grad():
        model.scratch(blocks={5: 30 * BLOCK_BYTES})
        with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate") as caught:
            model(x)
        (note,) = caught.value.__notes__
        assert "blocks go that stayed" in note
        assert swap.plan.residents == ()
        del caught
        least = re.search(r"free ([0-9.]+ KiB) or more there$", note)
        assert least is not None
        capacity(20 * BLOCK_BYTES + parse_bytes(least[1]))
        assert torch.equal(seeded(model, x, SEEDS[0]), wanted[0])


@pytest.mark.parametrize("store", STORES)
def test_exactly_chosen_blocks_are_left_alone(
    store: str, sim_device: torch.device, capacity: Any, tmp_path: Path
) -> None:
    x = given(sim_device)
    capacity(20 * BLOCK_BYTES)
    args = BlockSwapArgs(blocks_to_swap=6)
    with swapped(store, sim_device, tmp_path, args) as (model, swap), torch.no_grad():
        model.scratch(head=12 * BLOCK_BYTES)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            model(x)
        assert model.calls == 2
        (note,) = caught.value.__notes__
        assert "chosen exactly" in note
        assert "more blocks" in note
        assert len(swap.plan.residents) == 6
        assert "was run again" in swap.plan.sentences[-1]


def test_nothing_of_a_failed_forward_stays_alive(
    sim: ModuleType, sim_device: torch.device, tmp_path: Path
) -> None:
    """Neither while it is run again nor afterwards, and without the collector's help then."""
    x = given(sim_device)
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[list[bool]] = []

    def start(*_: object) -> None:
        alive.append([tensor() is not None for tensor in made])
        made.clear()

    def fail_once(*_: object) -> None:
        if len(alive) == 1:
            raise torch.OutOfMemoryError("Tried to allocate 1.00 GiB, says the test")

    with swapped("ram", sim_device, tmp_path, BlockSwapArgs(blocks_to_swap=6)) as (model, _):
        model.register_forward_pre_hook(lambda *_: gc.disable())
        model.blocks[11].linear.register_forward_pre_hook(fail_once)
        for block in model.blocks:
            block.register_forward_pre_hook(lambda _, args: made.append(weakref.ref(args[0])))
            block.register_forward_hook(lambda *given: made.append(weakref.ref(given[2])))
        model.blocks[0].register_forward_pre_hook(start, prepend=True)
        try:
            with torch.no_grad():
                model(x)
            assert [len(tensors) for tensors in alive] == [0, 23]
            assert not any(alive[1])
            assert len(made) == 24
            assert [tensor() for tensor in made] == [None] * 24
        finally:
            gc.enable()


def test_a_forward_keeps_its_name_and_signature_and_gets_them_back(
    sim_device: torch.device, sim: ModuleType
) -> None:
    model = build()
    signature = inspect.signature(model.forward)
    with swap_blocks(model, device=sim_device):
        assert inspect.signature(model.forward) == signature
        assert model.forward.__name__ == "forward"
        assert "forward" in vars(model)
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    ("message", "nbytes"),
    [
        ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total", 5 * 2**29),
        ("Tried to allocate 20.00 MiB (GPU 0; 7.79 GiB total)", 20 * 2**20),
        ("sim: out of memory. Tried to allocate 1.5 KiB (1536 bytes)", 1536),
        ("Tried to allocate 512 bytes", 512),
        ("out of memory", None),
        ("", None),
    ],
)
def test_bytes_asked_for_are_read_from_the_error(message: str, nbytes: int | None) -> None:
    assert asked_bytes(message) == nbytes
