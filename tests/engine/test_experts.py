"""Two models on one pool: equal to the last bit, memory there once, and the hand-over hidden."""

import gc
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import expect_refusal, inputs, skeleton, stores
from expert_pair import expected, expert, experts, run, write_experts
from test_leaks import MIB, Watch

from blockswap import BlockSwapArgs, open_experts, swap_blocks, swap_experts
from blockswap.errors import ArgsError, CheckpointError, StateError
from blockswap.plan.joint_plan import together_bytes
from blockswap.stream.pool.pool import Pool
from blockswap.swap.entry import experts as room
from engine_seams import collect_pools, wait_for_readers

ARGS: dict[str, dict[str, Any]] = {
    "all": {"blocks_to_swap": 6},
    "list": {"blocks": "0,2-4"},
    "two slots": {"blocks_to_swap": 5, "prefetch_blocks": 1},
    "one slot": {"blocks_to_swap": 6, "prefetch_blocks": 0, "use_non_blocking": False},
    "none": {"blocks_to_swap": 0},
    "budget": {"vram_budget": "700KiB"},
    "automatic": {},
}
SWITCHES = "aabbaababbba"


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    return collect_pools(monkeypatch)


def every_store(device: torch.device) -> list[str]:
    return list(stores(device))


@pytest.mark.parametrize("args", ARGS)
def test_experts_in_any_order_are_equal_to_the_last_bit(
    args: str, device: torch.device, tmp_path: Path
) -> None:
    for store in every_store(device):
        if args == "budget" and (device.type, store) == ("cpu", "ram"):
            continue  # loaded models lie where they are used, and the budget is refused
        with experts(store, "original", device, ARGS[args], tmp_path) as (models, _):
            run(models, SWITCHES, "original", device)


@pytest.mark.parametrize("family", ["diffusers", "diffusers-vace", "mini"])
def test_experts_of_every_family(family: str, device: torch.device, tmp_path: Path) -> None:
    for store in every_store(device):
        with experts(store, family, device, {"blocks_to_swap": 5}, tmp_path) as (models, _):
            run(models, "aabba", family, device)


@pytest.mark.parametrize("args", ["all", "budget", "automatic"])
@pytest.mark.parametrize("store", ["ram", "disk", "file-both"])
def test_slots_are_there_once(
    store: str,
    args: str,
    sim: ModuleType,
    sim_device: torch.device,
    pools: list[Pool],
    tmp_path: Path,
) -> None:
    gc.collect()
    before = sim.counters()
    with experts(store, "original", sim_device, ARGS[args], tmp_path) as (models, swaps):
        held = sim.counters().device_bytes - before.device_bytes
        plans = [swap.plan for swap in swaps]
        assert held == together_bytes(plans, pools[-1].device.granularity)
        if args == "budget":
            assert held <= 700 * 1024
        assert len(pools) == 1
        run(models, "aabb", "original", sim_device)
    del models, swaps
    gc.collect()
    after = sim.counters()
    assert after.device_bytes == before.device_bytes
    assert after.pinned_bytes == before.pinned_bytes


def test_residents_are_spread_over_both(
    sim_device: torch.device, capacity: Any, tmp_path: Path
) -> None:
    with experts("disk", "original", sim_device, {"vram_budget": "900KiB"}, tmp_path) as (_, swaps):
        first, second = (len(swap.plan.residents) for swap in swaps)
        # The embedder of each always stays; of the blocks no expert has two more than the other.
        assert abs(first - second) <= 1
        assert 1 < min(first, second) < 7


@pytest.mark.parametrize("store", ["ram", "disk", "file-both"])
def test_a_forward_moves_what_its_own_plan_says(
    store: str, sim: ModuleType, sim_device: torch.device, pools: list[Pool], tmp_path: Path
) -> None:
    given = inputs("mini", sim_device)
    with (
        experts(store, "mini", sim_device, {"blocks_to_swap": 5}, tmp_path) as (models, swaps),
        torch.no_grad(),
    ):
        run(models, "aabbaabb", "mini", sim_device)
        for model, swap in zip(models, swaps, strict=True):
            for _ in range(3):  # longer than its last turn: from here on it follows itself
                model(**given)
            wait_for_readers(pools[-1])
            before = sim.counters()
            for _ in range(3):
                model(**given)
            wait_for_readers(pools[-1])
            after = sim.counters()
            moved = after.h2d_bytes - before.h2d_bytes
            assert moved == 3 * swap.plan.copied_bytes_per_forward
            assert after.d2h_copies == before.d2h_copies
            assert after.pinned_allocations == before.pinned_allocations
            assert after.host_syncs_here == before.host_syncs_here


@pytest.mark.parametrize("store", ["ram", "disk", "file-both"])
def test_the_first_blocks_of_the_second_come_while_the_first_finishes(
    store: str, sim_device: torch.device, pools: list[Pool], tmp_path: Path
) -> None:
    with experts(store, "original", sim_device, {"blocks_to_swap": 6}, tmp_path) as (models, swaps):
        swaps[0].followed_by(swaps[1], after=3)
        run(models, "aa", "original", sim_device)
        assert swaps[1].measured().counters.copies == 0
        assert swaps[0].measured().counters.on_demand == 0
        run(models, "a", "original", sim_device)
        wait_for_readers(pools[-1])
        brought = [slot.occupant for slot in pools[-1].slots]
        assert {occupant[0] for occupant in brought if occupant} == {2}, "all slots hold the second"
        assert swaps[1].measured().counters.copies >= 3, "asked for before it was entered"
        run(models, "bb", "original", sim_device)
        assert swaps[1].measured().counters.on_demand == 0


@pytest.mark.parametrize("store", ["ram", "disk"])
def test_turns_are_learnt_from_one_clip_to_the_next(
    store: str, device: torch.device, pools: list[Pool], tmp_path: Path
) -> None:
    if device.type == "cpu" and store == "ram":
        pytest.skip("on the CPU loaded blocks are used where they lie")
    with experts(store, "mini", device, {"blocks_to_swap": 6}, tmp_path) as (models, _):

        def clip(turns: str) -> list[int]:
            """How many units of the other one are in slots when the turn of each has ended."""
            early = []
            for turn in turns.split():
                run(models, turn, "mini", device)
                other = 2 - "ab".index(turn[0])
                early.append(sum(slot.occupant[0] == other for slot in pools[-1].slots))
            return early

        assert clip("aaa bb") == [0, 0], "nobody could know"
        assert clip("aaa bb") == [3, 3]
        assert clip("aaaa bb") == [0, 3], "longer than the last time"
        assert clip("aaaa bb") == [3, 3]
        assert clip("aa bb") == [0, 3], "shorter"
        assert clip("aa bb") == [3, 3]


def test_followed_by_is_refused_where_it_means_nothing(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    args = {"blocks_to_swap": 5}
    with (
        experts("disk", "mini", cpu, args, tmp_path) as (_, swaps),
        experts("disk", "mini", cpu, args, tmp_path) as (_, others),
    ):
        for other in (swaps[0], others[1]):
            expect_refusal(
                lambda other=other: swaps[0].followed_by(other, after=1),
                ArgsError,
                "share their slots",
                "open_experts",
            )
        for after in (0, -1, 1.5, True, "2"):
            expect_refusal(
                lambda after=after: swaps[0].followed_by(swaps[1], after=after),
                ArgsError,
                f"after={after!r}",
            )


@pytest.mark.parametrize("first", [0, 1])
def test_one_is_closed_and_the_other_goes_on(
    first: int, device: torch.device, tmp_path: Path
) -> None:
    for store in every_store(device):
        with experts(store, "original", device, {"blocks_to_swap": 5}, tmp_path) as (models, swaps):
            run(models, "aabb" if first else "bbaa", "original", device)
            swaps[first].close()
            run(models, "ba"[first] * 3, "original", device)
            if store == "disk":
                with torch.no_grad():
                    expect_refusal(
                        lambda models=models: run(models, "ab"[first], "original", device),
                        StateError,
                        "closed",
                    )
            swaps[1 - first].close()


def test_one_is_dropped_and_the_other_goes_on(sim: ModuleType, tmp_path: Path) -> None:
    for name in ("cpu", "sim"):
        device = torch.device(name, 0) if name == "sim" else torch.device(name)
        expected(0, "mini", device)
        watch, before = Watch(), sim.counters()
        paths = write_experts(tmp_path, "mini")
        models = list(
            open_experts(
                paths,
                {"blocks_to_swap": 6},
                device=device,
                skeletons=[skeleton("mini"), skeleton("mini")],
            )
        )
        run(models, "aab", "mini", device)
        del models[0]
        gc.collect()
        run(["gone", *models], "bbb", "mini", device)
        models.clear()
        watch.check(grown=16 * MIB)
        assert sim.counters().device_bytes == before.device_bytes


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_other_expert_usable(
    error: type[BaseException], device: torch.device, tmp_path: Path
) -> None:
    for store in every_store(device):
        with experts(store, "mini", device, {"blocks_to_swap": 6}, tmp_path) as (models, _):
            run(models, "a", "mini", device)
            block = models[0].blocks[3]
            right = block.forward

            def fails(*args: Any, **kwargs: Any) -> Any:
                raise error("now")

            block.forward = fails
            with pytest.raises(error), torch.no_grad():
                run(models, "a", "mini", device)
            del block.forward
            assert right is not fails
            run(models, "bbab", "mini", device)


def test_two_threads_cannot_run_two_experts_at_once(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    with experts("disk", "mini", cpu, {"blocks_to_swap": 6}, tmp_path) as (models, _):
        inside, go_on = threading.Event(), threading.Event()
        block = models[0].blocks[3]
        right = block.forward

        def waits(*args: Any, **kwargs: Any) -> Any:
            inside.set()
            assert go_on.wait(30)
            return right(*args, **kwargs)

        block.forward = waits
        failures: list[BaseException] = []

        def other() -> None:
            try:
                run(models, "a", "mini", cpu)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(30)
        expect_refusal(
            lambda: run(models, "b", "mini", cpu), StateError, "shares its slots", "at a time"
        )
        go_on.set()
        thread.join(30)
        assert not failures
        del block.forward
        run(models, "ba", "mini", cpu)


def test_a_hundred_rounds_leak_nothing(tmp_path: Path) -> None:
    cpu = torch.device("cpu")

    def rounds(count: int) -> None:
        for _ in range(count):
            with experts("disk", "mini", cpu, {"blocks_to_swap": 5}, tmp_path) as (models, _):
                run(models, "ab", "mini", cpu)

    rounds(10)
    watch = Watch()
    rounds(100)
    watch.check(grown=16 * MIB)


def test_what_is_wrong_with_one_opens_none(
    sim: ModuleType, sim_device: torch.device, tmp_path: Path
) -> None:
    paths = write_experts(tmp_path, "mini")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(paths[1].read_bytes()[:-100])
    both = [skeleton("mini"), skeleton("mini")]
    before, watch = sim.counters().device_bytes, Watch()
    expect_refusal(
        lambda: open_experts([paths[0], cut], device=sim_device, skeletons=both), CheckpointError
    )
    expect_refusal(
        lambda: open_experts(paths[:1], device=sim_device), ArgsError, "open_transformer"
    )
    expect_refusal(lambda: open_experts(str(paths[0]), device=sim_device), ArgsError, "two or more")
    expect_refusal(
        lambda: open_experts(paths, device=sim_device, skeletons=both[:1]), ArgsError, "1 skeletons"
    )
    model = both[0]
    expect_refusal(lambda: swap_experts([model, model], device=sim_device), ArgsError, "twice")
    expect_refusal(lambda: swap_experts([model], device=sim_device), ArgsError, "swap_blocks")
    assert sim.counters().device_bytes == before
    watch.check(grown=16 * MIB)


def test_a_failure_in_the_middle_of_opening_leaves_nothing(
    sim: ModuleType, sim_device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [expert(0, "mini"), expert(1, "mini")]
    addresses = [p.data_ptr() for p in models[0].parameters()]
    before, watch = sim.counters().device_bytes, Watch()
    real, calls = room.swap_loaded, []

    def second_fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(room, "swap_loaded", second_fails)
    with pytest.raises(KeyboardInterrupt):
        swap_experts(models, {"blocks_to_swap": 5}, device=sim_device)
    assert sim.counters().device_bytes == before
    assert not hasattr(models[0], "blockswap")
    assert len(addresses) == len(list(models[0].parameters()))
    watch.check(grown=16 * MIB)
    with swap_blocks(models[0], BlockSwapArgs(blocks_to_swap=5), device=sim_device):
        run(models, "aa", "mini", sim_device)


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_swapped_experts_are_given_back_at_the_end_of_a_with(
    error: type[Exception] | None, sim: ModuleType, sim_device: torch.device
) -> None:
    models = [expert(0, "mini"), expert(1, "mini")]
    values = [[p.clone() for p in model.parameters()] for model in models]
    own = [list(model.parameters()) for model in models]
    before = sim.counters().device_bytes
    try:
        with swap_experts(models, {"blocks_to_swap": 5}, device=sim_device) as (high, low):
            assert (high.model, low.model) == tuple(models)
            run(models, "ab", "mini", sim_device)
            if error is not None:
                raise error
    except RuntimeError:
        assert error is not None
    assert high.closed
    assert low.closed
    for model, parameters, wanted in zip(models, own, values, strict=True):
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(parameters, wanted, strict=True))
    assert sim.counters().device_bytes == before


def test_a_dropped_model_that_was_interrupted_leaves_its_slot_to_the_other(
    sim: ModuleType, sim_device: torch.device, pools: list[Pool], tmp_path: Path
) -> None:
    """Ctrl-C in a block calls no hook, and then nobody is left to say that the slot is free."""
    models: list[Any] = list(
        open_experts(
            write_experts(tmp_path, "mini"),
            {"blocks_to_swap": 6, "prefetch_blocks": 1},
            device=sim_device,
            skeletons=[skeleton("mini"), skeleton("mini")],
        )
    )
    run(models, "ab", "mini", sim_device)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    models[0].blocks[3].forward = interrupted
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        models[0](**inputs("mini", sim_device))
    assert sum(slot.in_use for slot in pools[-1].slots) == 1
    del models[0]
    gc.collect()
    assert pools[-1].runner() is None, "nothing of the dropped model is left"
    run(["gone", *models], "bbb", "mini", sim_device)
    assert not any(slot.in_use for slot in pools[-1].slots)
    models[0].blockswap.close()
