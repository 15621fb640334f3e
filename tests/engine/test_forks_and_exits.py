"""A forked child, the end of the interpreter, and calls out of the middle of a forward."""

import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Shelf, expect_refusal, forward, opened, reference, stores

from blockswap.errors import StateError

ARGS = {"blocks_to_swap": 5, "prefetch_blocks": 1}
CHILD_SECONDS = 20

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")


def _child(model: Any, how: str) -> int:
    """What the child does; 0 if each call returned, or refused in our own words."""
    try:
        if how == "run":
            model.blocks[1](None)
    except StateError as refused:
        assert "forked process" in str(refused)
    model.blockswap.close()
    assert model.blockswap.closed
    model.blockswap.report()
    return 0


def _fork(model: Any, how: str) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        import signal

        signal.alarm(CHILD_SECONDS)  # a child that hangs is killed, and that is what it exits with
        code = _child(model, how)
    finally:
        os._exit(code)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("device", ["cpu", "sim-eager"], indirect=True)
def test_forks_at_random_moments(device: torch.device, shelf: Shelf) -> None:
    expected, draw = reference("original", device), random.Random(7)
    for store in stores(device):
        with opened(store, "original", device, ARGS, shelf=shelf) as (model, _):
            for how in ("run", "close", "run"):
                children: list[int] = []

                def fork(*_: Any, model: Any = model, how: str = how, born: Any = children) -> None:
                    born.append(_fork(model, how))

                block = model.blocks[draw.randrange(6)]  # type: ignore[index]
                register = draw.choice(["register_forward_pre_hook", "register_forward_hook"])
                handle = getattr(block, register)(fork)
                with torch.no_grad():
                    assert torch.equal(forward(model, "original", device), expected)
                    handle.remove()
                    fork()
                    assert torch.equal(forward(model, "original", device), expected)
                for child in children:
                    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


HUNDRED_FORKS = """
import gc, os, random, signal, sys, threading, time, warnings
warnings.simplefilter("ignore")
import torch
from cases import skeleton, inputs
from blockswap import BlockSwapArgs, open_transformer
model = open_transformer(sys.argv[1], BlockSwapArgs(blocks_to_swap=6), device="cpu",
                         skeleton=skeleton("original"))
given, outputs, stop, draw = inputs("original", torch.device("cpu")), set(), False, random.Random(3)

def run():
    with torch.no_grad():
        while not stop:
            outputs.add(model(**given)[0].sum().item())

runner = threading.Thread(target=run, daemon=True)
runner.start()
# To take a whole interpreter down takes seconds, so few of the children do.
ways = ["close"] * 70 + ["leave"] * 16 + ["drop"] * 10 + ["exit"] * 4
draw.shuffle(ways)
for how in ways:
    time.sleep(draw.random() * 0.01)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that hangs is killed, and that is what it exits with
        if how == "exit":
            sys.exit(0)
        if how == "close":
            model.blockswap.close()
        if how == "drop":
            del model
            gc.collect()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, how
stop = True
runner.join(60)
assert not runner.is_alive() and len(outputs) == 1, (runner.is_alive(), outputs)
"""

EXIT = """
import sys, threading, time, warnings
warnings.simplefilter("ignore")
import torch
from pathlib import Path
from cases import Shelf, skeleton, inputs
from blockswap import BlockSwapArgs, open_transformer
shelf_file, delay = sys.argv[1], float(sys.argv[2])
model = open_transformer(shelf_file, BlockSwapArgs(blocks_to_swap=6), device="cpu",
                         skeleton=skeleton("original"))
given, running = inputs("original", torch.device("cpu")), threading.Event()

def run():
    with torch.no_grad():
        while True:
            model(**given)
            running.set()

threading.Thread(target=run, daemon=True).start()
assert running.wait(60)
time.sleep(delay)
"""


def test_a_hundred_forks_while_another_thread_runs_forwards(shelf: Shelf) -> None:
    _end_in_silence(HUNDRED_FORKS, shelf.file("original"))


@pytest.mark.parametrize("delay", [0.0, 0.0013, 0.0037])
def test_the_interpreter_ends_under_a_forward(delay: float, shelf: Shelf) -> None:
    _end_in_silence(EXIT, shelf.file("original"), str(delay))


def _end_in_silence(script: str, path: Path, *more: str) -> None:
    """Runs `script` in a process of its own, which must not say a word."""
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path), *more],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize("device", ["cpu", "sim-eager"], indirect=True)
@pytest.mark.parametrize("what", ["forward", "block", "same block", "close"])
def test_calls_inside_a_block_are_refused(what: str, device: torch.device, shelf: Shelf) -> None:
    expected = reference("original", device)
    for store in stores(device):
        with opened(store, "original", device, ARGS, shelf=shelf) as (model, swap):
            blocks: Any = model.blocks

            def call(module: Any, args: Any, model: Any = model, swap: Any = swap) -> None:
                calls = {
                    "forward": lambda: forward(model, "original", device),
                    "block": lambda: model.blocks[4](*args),
                    "same block": lambda: model.blocks[2](*args),
                    "close": swap.close,
                }
                handle.remove()
                expect_refusal(
                    calls[what], StateError, "forward", "after that forward has returned"
                )

            handle = blocks[2].register_forward_pre_hook(call)
            for _ in range(2):
                with torch.no_grad():
                    assert torch.equal(forward(model, "original", device), expected)
            assert not swap.closed
