"""Models and machines for the planner's tests, and whole plans as text."""

from collections import Counter
from dataclasses import dataclass

from blockswap.layout.values import ModelLayout, UnitLayout
from blockswap.plan import Facts, SwapPlan, UnitFacts, make_plan
from blockswap.selection import BlockSwapArgs, select
from blockswap.units import format_bytes

GIB = 2**30
BLOCK_14B = 702_790_656  # bf16, each tensor at a multiple of 256 bytes


def block(index: int, nbytes: int = 100, **sizes: int | None) -> UnitFacts:
    """A block whose forms all have the same size, but for those given."""
    forms = {"resident_bytes": nbytes, "ram_slab_bytes": nbytes, "disk_slab_bytes": nbytes}
    return UnitFacts(name=f"blocks.{index}", kind="block", **(forms | sizes))


def machine(units: tuple[UnitFacts, ...], **changes: object) -> Facts:
    """An accelerator that rounds to 10 bytes, and a rest of 55 bytes."""
    base = {
        "label": "toy",
        "device": "cuda:0",
        "on_host": False,
        "units": units,
        "rest_bytes": 55,
        "device_free_bytes": None,
        "host_free_bytes": None,
        "granularity": 10,
        "from_checkpoint": False,
    }
    return Facts(**(base | changes))


def blocks(count: int, nbytes: int = 100, **sizes: int | None) -> tuple[UnitFacts, ...]:
    return tuple(block(index, nbytes, **sizes) for index in range(count))


def wan_14b(*, vace: int = 0, **changes: object) -> Facts:
    """A 14B model in bf16 on a card with 24 GiB and a host with 64 GiB."""
    units = list(blocks(40, BLOCK_14B))
    for index in range(vace):
        size = BLOCK_14B + 52_428_800
        where = 1 + 6 * index
        units.insert(where, UnitFacts(f"vace_blocks.{index}", "vace", size, size, size))
    units.insert(0, UnitFacts("text_embedding", "text_embedder", *[94_390_272] * 3))
    base = {
        "label": "Wan2.1-T2V-14B",
        "rest_bytes": 376_700_000,
        "device_free_bytes": 24 * GIB,
        "host_free_bytes": 64 * GIB,
        "granularity": 512,
    }
    return machine(tuple(units), **(base | changes))


def layout_of(facts: Facts) -> ModelLayout:
    """A layout with the units of `facts`, of which selection needs name, kind and number only."""
    seen: Counter[str] = Counter()
    units = []
    for unit in facts.units:
        units.append(UnitLayout(unit.name, unit.kind, seen[unit.kind], ()))
        seen[unit.kind] += 1
    return ModelLayout(facts.label, tuple(units), ())


def planned(facts: Facts, **wish: object) -> SwapPlan:
    args = BlockSwapArgs(**wish)
    return make_plan(facts, select(args, layout_of(facts)), args)


@dataclass(frozen=True)
class Case:
    facts: Facts
    wish: dict[str, object]


CPU = {"device": "cpu", "on_host": True, "device_free_bytes": None}
FILE = {"from_checkpoint": True}

CASES = {
    "automatic": Case(wan_14b(), {}),
    "count": Case(wan_14b(), {"blocks_to_swap": 26}),
    "vram_budget": Case(wan_14b(), {"vram_budget": "12GiB", "offload_txt_emb": True}),
    "tight_vram": Case(wan_14b(), {"vram_budget": "2GiB"}),
    "vace_both_tiers": Case(
        wan_14b(vace=8, **FILE), {"vram_budget": "8GiB", "ram_budget": "12GiB"}
    ),
    "file_only": Case(wan_14b(**FILE), {"blocks_to_swap": 40, "prefetch_blocks": 1}),
    "cpu_file": Case(wan_14b(**CPU, **FILE), {}),
    "cpu_file_budget": Case(wan_14b(**CPU, **FILE), {"ram_budget": "8GiB"}),
    "cpu_loaded": Case(wan_14b(**CPU), {"blocks": "0,2,3-5"}),
    "does_not_fit": Case(wan_14b(device_free_bytes=8 * GIB), {"blocks_to_swap": 20}),
}


def printed(plan: SwapPlan) -> str:
    """A plan as text: its map, its figures, its sentences."""
    figures = [
        f"device      {plan.device}, {plan.device_bytes} bytes ({format_bytes(plan.device_bytes)})",
        f"reserve     {plan.reserve_bytes} bytes",
        f"slots       {plan.slots} of {plan.slot_bytes} bytes, prefetch {plan.prefetch}",
        f"pinned      {plan.pinned_bytes} bytes",
        f"staging     {plan.staging_buffers} of {plan.staging_bytes} bytes",
        f"copied      {plan.copied_bytes_per_forward} bytes a forward",
        f"read        {plan.read_bytes_per_forward} bytes a forward",
    ]
    return "\n".join([plan.block_map(), *figures, "", *plan.sentences, ""])
