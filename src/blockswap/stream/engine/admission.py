"""When a block may not run: under grad, recorded, in a fork, or while another one of its pool runs.

Each refusal is a StateError; none changes anything.
"""

import threading

import torch

from ...ambient import is_recording
from ...errors import StateError
from ..pool.pool import Pool, Runner
from ..pool.run import Run
from ..threads.call_stack import in_any_module


def refuse_ways_of_running(name: str) -> None:
    """What would compute with the block's weights after they have left."""
    if is_recording():
        raise StateError(
            f"{name} was run while its operations are recorded (torch.jit.trace, make_fx), and a "
            "recording would keep slots in the place of weights: record the model before it is "
            "swapped"
        )
    if torch.is_grad_enabled():
        raise StateError(
            f"{name} was run with gradients enabled, but its weights leave "
            "the device after use: run the model under torch.no_grad() or inference_mode()"
        )


def refuse_forked(pool: Pool, what: str) -> None:
    """Before any lock is taken: a thread that held it at the fork is not in the child."""
    if pool.forked:
        raise StateError(
            f"{what} in a forked process, which has neither the threads nor the device of the "
            "one that swapped it: open the model there"
        )


def refuse_running(pool: Pool, me: Runner, what: str, index: int | None = None) -> None:
    """If `what`, the entry of unit `index` of mine perhaps, comes while a unit of the pool runs."""
    runner = pool.runner()
    run = None if runner is None else runner.run
    if run is None:
        return
    whose = "the same swap" if runner is me else "a swap that shares its slots"
    if run.is_here:
        itself = runner is me and run.index == index
        if run.calls_here() > itself:
            run.refused += itself
            raise StateError(
                f"{what} inside the forward of {run.name} of {whose}, "
                "whose weights are in use: do it after that forward has returned"
            )
    elif run.is_under_way():
        raise StateError(
            f"{what} while another thread runs {run.name} of {whose}: "
            "run one forward at a time, or swap a second copy of the model"
        )


def refuse_under_way(thread: threading.Thread | None) -> None:
    """If `thread`, which began a forward of the whole model, is still in it, between two blocks."""
    # An interrupt may have kept a forward from telling that it has ended.
    if thread is not None and in_any_module(thread):
        raise StateError(
            "the swap was to be closed while a forward of its model is under way: do it "
            "after that forward has returned"
        )


def refuse_saving(run: Run | None, index: int) -> None:
    """If the weights of unit `index` are a slot's at this moment, for the forward around this."""
    if run is not None and run.index == index and run.is_here and run.calls_here():
        raise StateError(
            f"the weights of {run.name} were asked for inside its forward, where they are in "
            "memory that other blocks use next: ask for them between forwards"
        )
