"""Our engine on the virtual clock, through its public door, from RAM or from a checkpoint file."""

from dataclasses import dataclass

from benchmarks.schedule.how.disk_clock import clocked_disk
from benchmarks.schedule.how.model import ClockedModel, timed_model
from benchmarks.schedule.how.simulator import Steady, prepare, steady_state
from benchmarks.schedule.what import (
    RATES,
    STEPS,
    Case,
    Rates,
    Setting,
    Steps,
    block_bytes,
    tail,
)
from benchmarks.shared.from_file import opened_from_file
from blockswap import BlockSwapArgs, SwapPlan, swap_blocks
from one_rank import Others, swapped

# What a `ram_budget` leaves to staging: two buffers for a block with its sectors, and less than a
# block more.
STAGING_BYTES = 5 * block_bytes() // 2


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


def arguments(case: Case, setting: Setting) -> BlockSwapArgs:
    """The arguments a person would give for this case."""
    ahead = None if setting.slots is None else setting.slots - 1
    if setting.residents == "contiguous":
        return BlockSwapArgs(blocks=tail(case), prefetch_blocks=ahead)
    in_ram = round(case.streamed * setting.in_ram)
    budget = in_ram * block_bytes() + STAGING_BYTES if in_ram else None
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


def run_from_disk(
    case: Case, setting: Setting, steps: Steps = STEPS, rates: Rates = RATES
) -> Outcome:
    """The same from a checkpoint file, read on the same clock at `rates.disk`."""
    prepare(rates)

    def make() -> ClockedModel:
        return ClockedModel(case.blocks)

    with opened_from_file(make, arguments(case, setting), "sim") as (skeleton, swap):
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
