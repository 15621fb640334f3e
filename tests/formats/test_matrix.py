"""Every format streamed equals the model that its own package dequantises, in stored bytes.

CI runs a pairwise choice of format x model x store x residency on each device; `make test-formats`
all of them (BLOCKSWAP_FORMATS=all).
"""

import gc
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from files import MODELS, NAMES, Shelf, forward

from blockswap import BlockSwapArgs, open_experts, open_transformer
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.formats import unpacked
from blockswap.swap.entry.checkpoint_file import plan_transformer
from pairs import pairwise

STORES: dict[str, dict[str, Any]] = {
    "disk": {},
    "ram": {"ram_budget": "1GiB"},
    "both": {"ram_budget": "3MiB"},
}
DEVICES = ("cpu", "sim-eager", "sim-lazy")
# One for each decoder.
DECODERS = (
    "fp8", "fp8-scale_weight", "fp8-groups", "fp8-blocks", "comfy-int8-rotated", "comfy-mxfp8",
    "comfy-nvfp4", "gguf-Q8_0", "gguf-Q6_K", "gguf-IQ4_XS", "gguf-mixed",
)  # fmt: skip
TIERS = {"disk": {"disk"}, "ram": {"ram"}, "both": {"ram", "disk"}}
STREAMED: dict[str, dict[str, Any]] = {
    "all": {"blocks_to_swap": 3, "prefetch_blocks": 1},
    "some": {"blocks": "0,2", "prefetch_blocks": 0},
}
PLANNED = STREAMED["all"] | {"vace_blocks_to_swap": 2}
AXES: dict[str, Any] = dict(
    name=NAMES, model=tuple(MODELS), store=tuple(STORES), streamed=tuple(STREAMED), device=DEVICES
)


def _cases() -> list[Any]:
    """(case, device) of each combination that is run."""
    rows = _rows()
    return [pytest.param(row, row["device"], id="-".join(row.values())) for row in rows]


def _rows() -> list[dict[str, str]]:
    if os.environ.get("BLOCKSWAP_FORMATS") == "all":
        return [
            dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())
        ]
    return pairwise(**AXES)


def _planned() -> list[tuple[str, str]]:
    if os.environ.get("BLOCKSWAP_FORMATS") == "all":
        return list(itertools.product(NAMES, STORES))
    return list(zip(DECODERS, itertools.cycle(STORES), strict=False))


def _args(case: dict[str, str], device: torch.device) -> BlockSwapArgs:
    # On the CPU blocks come from the file; a RAM budget would be one for everything.
    store = {} if device.type == "cpu" else STORES[case["store"]]
    args = store | STREAMED[case["streamed"]]
    if case["model"] == "vace" and case["streamed"] == "all":
        args = args | {"vace_blocks_to_swap": 2}
    return BlockSwapArgs(**args)


@pytest.mark.parametrize(("case", "device"), _cases(), indirect=["device"])
def test_a_format_streamed_equals_its_package_dequantised(
    case: dict[str, str], device: torch.device, packed_files: Shelf
) -> None:
    name, model = case["name"], case["model"]
    expected = forward(packed_files.plain(name, model, device), model, device)
    assert torch.isfinite(expected.float()).all()
    opened: Any = open_transformer(
        packed_files.file(name, model), _args(case, device), device=device
    )
    with opened.blockswap:
        for _ in range(2):
            assert torch.equal(forward(opened, model, device), expected)


@pytest.mark.parametrize(("name", "store"), _planned())
def test_what_moves_and_what_is_held_is_planned_to_the_byte(
    name: str, store: str, sim: Any, sim_device: torch.device, packed_files: Shelf
) -> None:
    path = packed_files.file(name, "vace")
    args = BlockSwapArgs(**_budget(store, path, sim_device), **PLANNED)

    def taken_by(model: Any) -> tuple[int, int]:
        """Bytes above what is held, and allocations, of a forward in the steady state."""
        forward(model, "vace", sim_device)
        _wait_for_readers(model)
        torch.accelerator.reset_peak_memory_stats()
        start = sim.counters()
        forward(model, "vace", sim_device)
        _wait_for_readers(model)
        end = sim.counters()
        peak = torch.accelerator.max_memory_allocated() - start.device_bytes
        return peak, end.device_allocations - start.device_allocations

    # The same file without anything to decode, streamed in the same way.
    plain: Any = open_transformer(path.parent / "vace-plain", args, device=sim_device)
    activations = taken_by(plain)
    plain.blockswap.close()
    del plain
    gc.collect()
    sim.reset()
    base = sim.counters().device_bytes
    opened: Any = open_transformer(path, args, device=sim_device)
    with opened.blockswap as swap:
        now, plan = sim.counters(), swap.plan
        assert {unit.tier for unit in plan.units} - {"resident"} == TIERS[store]
        assert now.device_bytes - base == plan.device_bytes
        assert now.device_bytes_peak - base == plan.device_bytes, "more while opening"
        assert taken_by(opened) == activations, "decoding takes the plan's buffer and nothing else"
        before, read = sim.counters(), swap.measured().counters
        for _ in range(3):
            forward(opened, "vace", sim_device)
        _wait_for_readers(opened)
        after, mine = sim.counters(), swap.measured().counters
        copied, was_read = mine.copied_bytes - read.copied_bytes, mine.read_bytes - read.read_bytes
        # How far the next forward's first units are when one ends is a matter of time.
        ahead = plan.slots * plan.slot_bytes
        assert abs(copied - 3 * plan.copied_bytes_per_forward) <= ahead
        assert abs(was_read - 3 * plan.read_bytes_per_forward) <= 2 * ahead
        assert abs(after.h2d_bytes - before.h2d_bytes - copied) < 3 * plan.slot_bytes
        # Sectors of the file are read and copied whole; RAM has the arrays alone.
        stored = _stored_bytes(path)
        assert stored <= plan.copied_bytes_per_forward <= stored + 5 * 60 * 4096
    assert sim.counters().device_bytes == base


def _budget(store: str, path: Path, device: torch.device) -> dict[str, Any]:
    """For both tiers: room for the staging buffers and about half of the blocks beside them."""
    if store != "both":
        return STORES[store]
    plan = plan_transformer(path, BlockSwapArgs(**PLANNED), device=device)
    staging = plan.staging_buffers * plan.staging_bytes
    return {"ram_budget": staging + plan.slot_bytes + plan.slot_bytes // 2}


def _wait_for_readers(model: Any) -> None:
    """Copies that readers enqueue count as well: until all of them are under way, and over."""
    pool = model.blockswap._streamer._pool
    for job in (*(slot.job for slot in pool.slots), *(s.read for s in pool.staging)):
        assert job is None or job.wait(30)
    torch.accelerator.synchronize()


def _stored_bytes(path: Path) -> int:
    """Bytes of the blocks as they stand in the file."""
    tensors = unpacked(open_checkpoint(path)).tensors
    return sum(t.nbytes for key, t in tensors.items() if "blocks." in key)


def test_two_experts_of_different_formats_share_a_pool(
    device: torch.device, packed_files: Shelf
) -> None:
    names = ("gguf-Q4_K", "fp8-scale_weight")
    args = BlockSwapArgs(blocks_to_swap=3, prefetch_blocks=1)
    paths = [packed_files.file(name, "t2v") for name in names]
    experts: Any = open_experts(paths, args, device=device)
    try:
        for _ in range(2):
            for name, expert in zip(names, experts, strict=True):
                expected = forward(packed_files.plain(name, "t2v", device), "t2v", device)
                assert torch.equal(forward(expert, "t2v", device), expected)
    finally:
        for expert in experts:
            expert.blockswap.close()
