"""Peers' schedules on the virtual clock, measured exactly as ours is."""

from benchmarks.ours import Outcome
from benchmarks.peers import PEERS
from benchmarks.simulator import RATES, STEPS, Rates, Steps, prepare, steady_state
from benchmarks.workload import Case, timed_model, transfer_seconds


def run_peer(name: str, case: Case, steps: Steps = STEPS, rates: Rates = RATES) -> Outcome:
    """One peer on one case. The bound is the same as ours: only what is streamed has to move."""
    # Allocators of some peers free memory that another stream used and synchronise later: sound
    # on a real device, and not what is measured here.
    prepare(rates, races="off")
    model = timed_model(case, rates)
    schedule = PEERS[name](model, case, rates)
    try:
        steady = steady_state(schedule, steps)
    finally:
        schedule.close()
    return Outcome(steady, case.bound_seconds(transfer_seconds(case, rates)), slots=0)
