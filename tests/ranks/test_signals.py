"""A signal to one rank, or to all as torchrun sends it: the others say so, and nothing is left."""

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from fleet import run_ranks, values

TIERS = ("file", "memory", "accelerator")
MOMENTS = ("opening", "waiting", "between", "in a forward", "in a gather", "closing")
NUMBERS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "handled")
# How such a rank ends: by the signal, or by what Python raises for it.
CODES = {"SIGKILL": -9, "SIGTERM": -15, "SIGHUP": -1, "SIGINT": 1, "handled": 1}
SOME = [
    ("file", "waiting", "SIGTERM", False),
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
# Of one rank, or all; on the CPU nothing is gathered of what is in memory; all wait for nobody.
EVERY = [
    (tier, when, number, everybody)
    for tier, when, number, everybody in itertools.product(TIERS, MOMENTS, NUMBERS, (False, True))
    if not (tier == "memory" and when == "in a gather") and not (when == "waiting" and everybody)
]
CASES = EVERY if os.environ.get("BLOCKSWAP_EVERY_POINT") else SOME


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
    assert noted or when in ("opening", "waiting")
    if everybody:
        assert other.code == CODES[number]
        return
    (found,) = values([other])
    assert found["segments"] == 0
    assert all(found["equal"])
    said = " ".join(found["said"])
    if when in ("opening", "waiting"):
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
    if locked:
        assert "locked by one of them that has not gone on for 1 s" in other["said"]
        assert "ranks [0] did not answer" in stopped["said"]
    else:
        assert len(other["equal"]) == len(stopped["equal"]) == 3
        assert "rank 1 did not bring its part of blocks." in other["said"]
