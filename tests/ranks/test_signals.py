"""A signal to one rank, or to all as torchrun sends it: the others say so, and nothing is left."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fleet import HERE, environment, run_ranks, values

EVERY_POINT = bool(os.environ.get("BLOCKSWAP_EVERY_POINT"))
TIERS = ("file", "memory", "accelerator")
OPENING = ("opening", "waiting", "unseen", "meeting", "met")
MOMENTS = (*OPENING, "between", "in a forward", "in a gather", "closing")
NUMBERS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "handled")
# How such a rank ends: by the signal, or by what Python raises for it.
CODES = {"SIGKILL": -9, "SIGTERM": -15, "SIGHUP": -1, "SIGINT": 1, "handled": 1}
SOME = [
    ("file", "waiting", "SIGTERM", False),
    ("file", "unseen", "SIGKILL", False),
    ("file", "in a forward", "SIGTERM", True),
    ("file", "in a gather", "SIGINT", False),
    ("file", "closing", "handled", False),
    ("memory", "waiting", "SIGINT", False),
    ("memory", "in a forward", "SIGHUP", False),
    ("accelerator", "opening", "handled", False),
    ("accelerator", "in a gather", "SIGTERM", False),
    ("accelerator", "between", "SIGINT", False),
    ("accelerator", "closing", "SIGHUP", True),
]
# Of one rank, or all; on the CPU nothing is gathered of what is in memory, and no group started
# for it; all wait for nobody.
EVERY = [
    (tier, when, number, everybody)
    for tier, when, number, everybody in itertools.product(TIERS, MOMENTS, NUMBERS, (False, True))
    if not (tier == "memory" and when == "in a gather")
    and not (tier != "accelerator" and when in ("meeting", "met"))
    and not (everybody and when in ("waiting", "unseen", "meeting", "met"))
]
RANDOM = 6 if EVERY_POINT else 1  # of each kind
CASES = EVERY if EVERY_POINT else SOME


@pytest.mark.parametrize(("tier", "when", "number", "everybody"), CASES)
def test_a_signal_ends_a_rank_and_leaves_nothing(
    tier: str, when: str, number: str, everybody: bool, sim_module: Any, tmp_path: Path
) -> None:
    before = sorted(os.listdir("/dev/shm"))
    path = tmp_path / "m.safetensors"
    asked = {"tier": tier, "when": when, "number": number, "all": everybody}
    other, ended = run_ranks(2, "signalled", path=str(path), **asked)
    assert ended.code == CODES[number], ended.errors
    assert sorted(os.listdir("/dev/shm")) == before
    noted = {line for file in tmp_path.glob("*.segments.*") for line in file.read_text().split()}
    assert noted.isdisjoint(_segments_in_use())
    assert noted or when in OPENING
    if everybody:
        assert other.code == CODES[number]
        return
    (found,) = values([other])
    assert found["segments"] == 0
    assert all(found["equal"])
    said = " ".join(found["said"])
    if when in OPENING:
        assert not found["equal"]
        assert "one of them ended or did not come" in said
    elif tier == "memory":
        assert len(found["equal"]) == 3
        assert not said
    else:
        _gathers_ended(found, when, said)


def _gathers_ended(found: Any, when: str, said: str) -> None:
    """One sentence; each forward that returned is right, and all do unless a gather has failed."""
    assert len(found["said"]) == 1 or when == "closing"
    if "was to gather" in said:
        assert when == "in a gather"
        return
    assert len(found["equal"]) == 3
    assert "brings all of every block" in said or when == "closing"


@pytest.mark.parametrize("number", NUMBERS if EVERY_POINT else NUMBERS[:1])
@pytest.mark.parametrize("tier", TIERS if EVERY_POINT else TIERS[:1])
def test_a_signal_at_any_time(tier: str, number: str, sim_module: Any, tmp_path: Path) -> None:
    """At moments that are drawn: nobody waits for long, and what was computed is right."""
    before, draw = sorted(os.listdir("/dev/shm")), random.Random(f"{tier} {number}")
    for turn in range(RANDOM):
        path = str(tmp_path / f"{turn}.safetensors")
        asked = {"tier": tier, "number": number, "all": False, "when": draw.uniform(0, 0.6)}
        other, ended = run_ranks(2, "signalled", path=path, **asked)
        assert ended.code in (CODES[number], 0), ended.errors
        (found,) = values([other])
        assert all(found["equal"])
        assert found["segments"] == 0
        assert len(found["equal"]) == 3 or len(found["said"]) >= 1
        assert sorted(os.listdir("/dev/shm")) == before


def _segments_in_use() -> set[str]:
    """Inodes of the shared memory of all processes that are left."""
    found: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text().splitlines()
        except OSError:
            continue
        found |= {line.split()[4] for line in lines if "memfd:blockswap" in line}
    return found


@pytest.mark.parametrize("locked", [False, True])
def test_a_rank_that_is_stopped_lets_the_other_go_on_or_say_why(
    locked: bool, tmp_path: Path
) -> None:
    path = str(tmp_path / "m.safetensors")
    other, stopped = values(run_ranks(2, "stopped", path=path, locked=locked))
    assert all(other["equal"] + stopped["equal"])
    assert len(stopped["equal"]) == 3 or "was to gather" in stopped["said"]
    if locked:
        assert "locked by one of them that has not gone on for 1 s" in other["said"]
    else:
        assert len(other["equal"]) == 3
        assert "rank 1 did not bring its part of blocks." in other["said"]


@pytest.mark.skipif(not EVERY_POINT, reason="make every-point runs it: four launches of torchrun")
@pytest.mark.parametrize("how", ["restarted", "ended"])
def test_ranks_that_torchrun_starts_again_or_ends(how: str, tmp_path: Path) -> None:
    """One is killed and all are started anew: they find each other again. SIGTERM ends all."""
    before = sorted(os.listdir("/dev/shm"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
              "--standalone", "--local-addr", "127.0.0.1", "--max-restarts", "1",
              str(HERE / "launched.py"), str(tmp_path), how]  # fmt: skip
    run = subprocess.Popen(launch, env=environment(), stderr=subprocess.PIPE, text=True)
    if how == "ended":
        while len(list(tmp_path.glob("ended.0.?"))) < 2:
            assert run.poll() is None
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=200)
    assert (run.returncode == 0) is (how == "restarted"), errors[-3000:]
    done = sorted(path.name for path in tmp_path.glob("done.*"))
    assert done == (["done.1.0", "done.1.1"] if how == "restarted" else [])
    told = [path.read_text().split() for path in tmp_path.glob(f"{how}.?.?")]
    assert len(told) >= (3 if how == "restarted" else 2)
    assert not [pid for pid, *_ in told if Path("/proc", pid).exists()]
    assert {segment for _, *segments in told for segment in segments}.isdisjoint(_segments_in_use())
    assert sorted(os.listdir("/dev/shm")) == before
