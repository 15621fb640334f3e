"""Peers' schedules on the virtual clock, measured exactly as ours is."""

from benchmarks.schedule.how.model import timed_model
from benchmarks.schedule.how.ours import Outcome
from benchmarks.schedule.how.peers import OPEN
from benchmarks.schedule.how.simulator import prepare, steady_state
from benchmarks.schedule.what import RATES, STEPS, Case, Rates, Steps, transfer_seconds


def run_peer(name: str, case: Case, steps: Steps = STEPS, rates: Rates = RATES) -> Outcome:
    """One peer on one case. The bound is the same as ours: only what is streamed has to move."""
    # Allocators of some peers free memory that another stream used and synchronise later: sound
    # on a real device, and not what is measured here.
    prepare(rates, races="off")
    model = timed_model(case, rates)
    schedule = OPEN[name](model, case, rates)
    try:
        steady = steady_state(schedule, steps)
    finally:
        schedule.close()
    return Outcome(steady, case.bound_seconds(transfer_seconds(case, rates)), slots=0)
