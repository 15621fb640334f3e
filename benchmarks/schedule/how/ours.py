"""Our engine on the virtual clock, through its public door, from RAM or from a checkpoint file."""

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.schedule.how.disk_clock import clocked_disk
from benchmarks.schedule.how.model import ClockedModel, timed_model
from benchmarks.schedule.how.simulator import Steady, prepare, steady_state
from benchmarks.schedule.what import (
    BLOCK_TENSORS,
    RATES,
    READ_TENSOR_BYTES,
    STEPS,
    Case,
    Rates,
    Setting,
    Steps,
    block_bytes,
    tail,
)
from benchmarks.shared.from_file import opened_from_file
from blockswap import BlockSwapArgs, SwapPlan, open_transformer, swap_blocks
from blockswap.layout.slab import staging_chunks
from blockswap.store.file_slab import SECTOR
from one_rank import Others, opened, swapped


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case measured: the steady state, the bound of the case and the slots that were used.

    Of our own engine also the plan, and what each block computed for.
    """

    steady: Steady
    bound_seconds: float
    slots: int
    plan: SwapPlan | None = None
    block_seconds: float = 0.0

    @property
    def over_bound(self) -> float:
        """Step time as a multiple of what no schedule can beat."""
        return self.steady.step_seconds / self.bound_seconds


def arguments(
    case: Case, setting: Setting, block: int | None = None, buffers: int = 2
) -> BlockSwapArgs:
    """The arguments a person would give for this case, for blocks of `block` bytes.

    A `ram_budget` has room for `buffers` of staging, too, each for a block with its sectors, and
    for less than a block more.
    """
    block = block or block_bytes()
    staging = buffers * sum(staging_chunks(block + 2 * SECTOR)) + block // 4
    ahead = None if setting.slots is None else setting.slots - 1
    if setting.residents == "contiguous":
        return BlockSwapArgs(blocks=tail(case), prefetch_blocks=ahead)
    in_ram = round(case.streamed * setting.in_ram)
    budget = in_ram * block + staging if in_ram else None
    return BlockSwapArgs(blocks_to_swap=case.streamed, prefetch_blocks=ahead, ram_budget=budget)


def run_from_ram(
    case: Case, setting: Setting, steps: Steps = STEPS, rates: Rates = RATES
) -> Outcome:
    """Streams the case's blocks from pinned RAM and measures the steady state."""
    prepare(rates)
    model = timed_model(case, rates)
    with swap_blocks(model, arguments(case, setting), device="sim") as swap:
        transfer = rates.link_seconds(swap.plan.copied_bytes_per_forward)
        steady = steady_state(model, steps)
        return _outcome(case, swap.plan, steady, transfer)


def run_in_parts(
    case: Case, setting: Setting, steps: Steps = STEPS, rates: Rates = RATES
) -> Outcome:
    """The same as one of `setting.ranks` ranks, each with a link of its own and a gather link."""
    prepare(rates)
    model = timed_model(case, rates)
    others = Others(0, setting.ranks, setting.gather * 1e9)
    with swapped(model, arguments(case, setting), others) as swap:
        streamed = swap.plan.streamed_bytes
        own = rates.link_seconds(streamed // setting.ranks)
        gathered = streamed * (setting.ranks - 1) / setting.ranks / (setting.gather * 1e9)
        transfer = max(own, gathered)
        model.compute_for(case.compute_seconds(transfer))
        steady = steady_state(model, steps)
        return _outcome(case, swap.plan, steady, transfer)


def run_from_file_in_parts(
    case: Case, setting: Setting, steps: Steps = STEPS, rates: Rates = RATES
) -> Outcome:
    """The same from a file that all of them read: of the disk's rate each has its part."""
    rates = replace(rates, disk=setting.disk / setting.ranks)
    prepare(rates)
    others = Others(0, setting.ranks, setting.gather * 1e9)
    block = BLOCK_TENSORS * READ_TENSOR_BYTES

    def make() -> ClockedModel:
        return ClockedModel(case.blocks, READ_TENSOR_BYTES)

    def open_rank(path: Path, skeleton: ClockedModel) -> None:
        args = arguments(case, replace(setting, ranks=1), block, 2 * setting.ranks)
        opened(path, skeleton, args, others)

    with opened_from_file(make, open_rank) as (skeleton, swap):
        plan = swap.plan
        share = setting.ranks * 1e9
        read = plan.read_bytes_per_forward / share / rates.disk
        link = plan.copied_bytes_per_forward / share / rates.link
        gathered = plan.streamed_bytes * (setting.ranks - 1) / share / setting.gather
        transfer = max(read, link, gathered)
        skeleton.compute_for(case.compute_seconds(transfer))
        with clocked_disk():
            steady = steady_state(skeleton, steps)
        return _outcome(case, plan, steady, transfer)


def run_from_disk(
    case: Case, setting: Setting, steps: Steps = STEPS, rates: Rates = RATES
) -> Outcome:
    """The same from a checkpoint file, read on the same clock at `rates.disk`."""
    prepare(rates)

    def make() -> ClockedModel:
        return ClockedModel(case.blocks)

    def open_alone(path: Path, skeleton: ClockedModel) -> None:
        open_transformer(path, arguments(case, setting), device="sim", skeleton=skeleton)

    with opened_from_file(make, open_alone) as (skeleton, swap):
        plan = swap.plan
        read = rates.disk_seconds(plan.read_bytes_per_forward)
        transfer = max(read, rates.link_seconds(plan.copied_bytes_per_forward))
        skeleton.compute_for(case.compute_seconds(transfer))
        with clocked_disk():
            steady = steady_state(skeleton, steps)
        return _outcome(case, plan, steady, transfer)


def _outcome(case: Case, plan: SwapPlan, steady: Steady, transfer: float) -> Outcome:
    bound, each = case.bound_seconds(transfer), case.compute_seconds(transfer)
    return Outcome(steady, bound, plan.slots, plan, each)
