"""What holds for every plan, over random models, machines and budgets; and against brute force."""

import re
from dataclasses import replace
from itertools import combinations

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plan_samples import block, blocks, layout_of, machine

from blockswap.errors import PlanError
from blockswap.layout.slab import align_up, staging_chunks
from blockswap.plan import make_plan
from blockswap.plan.inputs.slot_size import serving_bytes
from blockswap.selection import BlockSwapArgs, Selection, select
from blockswap.units import parse_bytes

SIZES = st.sampled_from([40, 95, 100, 101, 250])


@st.composite
def units(draw, most=8):
    """A few blocks, all alike or of a few sizes, whose forms may differ."""
    count = draw(st.integers(1, most))
    alike = draw(st.booleans())
    first = None
    made = []
    for index in range(count):
        first = first if first is not None and alike else draw(st.tuples(SIZES, SIZES, SIZES))
        resident, ram, disk = first
        decode = resident if disk != resident else 0
        unit = block(index, resident, ram_slab_bytes=ram, disk_slab_bytes=disk, decode_bytes=decode)
        made.append(unit)
    return tuple(made)


@st.composite
def facts(draw, most=8):
    on_host = draw(st.booleans())
    return machine(
        draw(units(most)),
        device="cpu" if on_host else "cuda:0",
        on_host=on_host,
        from_checkpoint=on_host or draw(st.booleans()),
        granularity=draw(st.sampled_from([1, 10, 64])),
        device_free_bytes=draw(st.none() | st.integers(0, 3000)),
    )


@st.composite
def candidates(draw, of):
    names = [unit.name for unit in of.units]
    chosen = draw(st.sets(st.sampled_from(names)))
    return Selection(tuple(n for n in names if n in chosen), exact=False, sentences=())


WISHES = st.builds(
    BlockSwapArgs,
    vram_budget=st.integers(0, 2500),
    ram_budget=st.none() | st.integers(0, 2500),
    prefetch_blocks=st.none() | st.integers(0, 4),
)


def outcome(of, selection, args):
    """The plan, or None where none fits."""
    try:
        return make_plan(of, selection, args)
    except PlanError:
        return None


def limit_of(of, args):
    """The budget that counts on the device."""
    both = of.on_host and args.ram_budget
    return min(args.vram_budget, args.ram_budget) if both else args.vram_budget


@settings(deadline=None)
@given(st.data(), facts(), WISHES)
def test_a_plan_is_within_its_budget_and_adds_up(data, of, args):
    plan = outcome(of, data.draw(candidates(of)), args)
    assume(plan is not None)
    up = [of.rest_bytes, plan.decode_bytes, *[plan.slot_bytes] * plan.slots]
    up += [unit.slab_bytes for unit in plan.units if unit.tier == "resident"]
    assert plan.device_bytes == sum(align_up(size, of.granularity) for size in up)
    assert plan.device_bytes <= limit_of(of, args)


@settings(deadline=None)
@given(st.data(), facts(), WISHES)
def test_only_candidates_are_streamed_and_every_slab_fits_a_slot(data, of, args):
    selection = data.draw(candidates(of))
    plan = outcome(of, selection, args)
    assume(plan is not None)
    streamed = [unit for unit in plan.units if unit.tier != "resident"]
    assert {unit.name for unit in streamed} <= set(selection.candidates)
    largest = max((unit.slab_bytes for unit in streamed), default=0)
    # A block that is hardly larger in the file may come to be streamed later: its slot serves both.
    hardly = [u.disk_slab_bytes or 0 for u in of.units if of.from_checkpoint and not of.on_host]
    alike = [size for size in hardly if largest <= size <= largest + largest // 64]
    assert plan.slot_bytes == max([largest, *alike])
    assert plan.slots <= len(streamed)
    assert (plan.slots > 0) == bool(streamed)
    assert plan.prefetch == max(plan.slots - 1, 0)
    assert [unit.name for unit in plan.units] == [unit.name for unit in of.units]


@settings(deadline=None)
@given(st.data(), facts(), WISHES)
def test_host_memory_is_within_the_ram_budget(data, of, args):
    plan = outcome(of, data.draw(candidates(of)), args)
    assume(plan is not None)
    pinned = sum(unit.slab_bytes for unit in plan.units if unit.tier == "ram")
    if args.ram_budget is not None:
        pinned = min(pinned, args.ram_budget)
    assert plan.pinned_bytes == pinned
    if of.from_checkpoint and pinned:
        assert pinned + plan.staging_buffers * plan.staging_bytes <= args.ram_budget


@settings(deadline=None)
@given(st.data(), facts(), WISHES)
def test_bytes_a_forward_are_those_of_the_streamed_unless_they_stay_in_their_slots(data, of, args):
    plan = outcome(of, data.draw(candidates(of)), args)
    assume(plan is not None)
    streamed = [unit for unit in plan.units if unit.tier != "resident"]
    moving = streamed if len(streamed) > plan.slots else []
    copied = 0 if of.on_host else sum(unit.slab_bytes for unit in moving)
    assert plan.copied_bytes_per_forward == copied
    read = sum(unit.slab_bytes for unit in moving if unit.tier == "disk")
    assert plan.read_bytes_per_forward == read
    in_ram = sum(unit.slab_bytes for unit in streamed if unit.tier == "ram")
    pageable = plan.pinned_bytes < in_ram
    through = [u.slab_bytes for u in streamed if u.tier == "disk" or pageable]
    staged = bool(through) and not of.on_host
    assert (plan.staging_buffers > 0) == staged
    exact = sum(staging_chunks(max(through))) if staged else 0
    # A little more where that serves blocks that may come to be streamed later.
    assert plan.staging_bytes in (exact, serving_bytes(of, exact))


@settings(deadline=None)
@given(st.data(), facts(), WISHES)
def test_a_plan_depends_on_its_arguments_alone(data, of, args):
    selection = data.draw(candidates(of))
    assert outcome(of, selection, args) == outcome(of, selection, args)


@settings(deadline=None)
@given(st.data(), facts(), WISHES, st.integers(0, 500))
def test_more_budget_never_means_fewer_residents(data, of, args, more):
    selection = data.draw(candidates(of))
    less_plan = outcome(of, selection, args)
    assume(less_plan is not None)
    more_plan = make_plan(of, selection, replace(args, vram_budget=args.vram_budget + more))
    assert len(more_plan.residents) >= len(less_plan.residents)


@settings(deadline=None)
@given(st.data(), facts(), st.none() | st.integers(0, 500))
def test_the_least_budget_named_by_a_refusal_fits_and_one_byte_less_does_not(data, of, ram):
    selection = data.draw(candidates(of))
    args = BlockSwapArgs(vram_budget=0, ram_budget=None if of.on_host else ram)
    try:
        make_plan(of, selection, args)
    except PlanError as error:
        least = error.least_bytes
        told = re.search(r"at least ([0-9.]+ [A-Za-z]+) on", str(error))[1]
        assert parse_bytes(told) >= least
    assert outcome(of, selection, replace(args, vram_budget=least)) is not None
    assert outcome(of, selection, replace(args, vram_budget=least - 1)) is None


def price(of, streamed, slots):
    """Device bytes when all streamed units rest in one tier, written down independently."""
    disk = of.from_checkpoint
    slabs = [unit.disk_slab_bytes if disk else unit.ram_slab_bytes for unit in streamed]
    sizes = [of.rest_bytes, *(unit.resident_bytes for unit in of.units if unit not in streamed)]
    slot = max(slabs, default=0)
    if disk and not of.on_host:  # a slot serves blocks of the file that are hardly larger, too
        others = [unit.disk_slab_bytes for unit in of.units]
        slot = max((size for size in others if slot <= size <= slot + slot // 64), default=slot)
    sizes += [slot] * min(slots, len(streamed))
    sizes.append(max((unit.decode_bytes for unit in streamed), default=0) if disk else 0)
    return sum(align_up(size, of.granularity) for size in sizes)


def subsets(of):
    return [c for n in range(len(of.units) + 1) for c in combinations(of.units, n)]


@settings(deadline=None)
@given(facts(most=6), st.integers(0, 1800), st.integers(0, 3))
def test_brute_force_finds_no_more_residents(of, budget, ahead):
    everything = Selection(tuple(unit.name for unit in of.units), exact=False, sentences=())
    plan = outcome(of, everything, BlockSwapArgs(vram_budget=budget, prefetch_blocks=ahead))
    options = [(price(of, sub, 1), len(of.units) - len(sub), sub) for sub in subsets(of)]
    least = min(cost for cost, _, _ in options)
    floor = max(residents for cost, residents, _ in options if cost == least)
    assert (plan is None) == (budget < least)
    assume(plan is not None)
    fitting = [n for _, n, sub in options if n >= floor and price(of, sub, ahead + 1) <= budget]
    assert len(plan.residents) == max(fitting, default=floor)


@settings(deadline=None)
@given(st.integers(2, 48), st.integers(0, 6000), st.booleans(), st.none() | st.integers(0, 4000))
def test_equal_blocks_are_spread_evenly_around_the_ring(count, budget, from_checkpoint, ram):
    of = machine(blocks(count), from_checkpoint=from_checkpoint)
    args = BlockSwapArgs(vram_budget=budget, ram_budget=ram)
    plan = outcome(of, select(args, layout_of(of)), args)
    assume(plan is not None)
    tiers = [unit.tier for unit in plan.units]
    assert_even([tier != "resident" for tier in tiers])
    assert_even([tier == "disk" for tier in tiers if tier != "resident"])


def assert_even(marks):
    """Gaps between marks differ by at most one around the ring."""
    places = [at for at, mark in enumerate(marks) if mark]
    around = [*places[1:], places[0] + len(marks)] if places else []
    gaps = {after - before for before, after in zip(places, around, strict=True)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@settings(deadline=None)
@given(facts(), st.integers(0, 3000))
def test_automatic_uses_no_more_than_is_free(of, free):
    of = replace(of, on_host=False, device_free_bytes=free)
    args = BlockSwapArgs()
    plan = outcome(of, select(args, layout_of(of)), args)
    assume(plan is not None)
    assert plan.device_bytes <= free
    assert plan.reserve_bytes == free - plan.device_bytes
