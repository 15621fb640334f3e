"""Slots that several ranks fill from a file: each wait is needed, and the bits are right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import fresh, inputs, metadata, reference, skeleton
from mutation_scenario import Scenario
from safetensors.torch import save_file

from blockswap import BlockSwapArgs
from blockswap.errors import ReadError
from blockswap.stream.pool.gathers import Gathers
from blockswap.stream.pool.pool import Pool
from engine_seams import Gate, stall_reads, wait_for_readers
from one_rank import Others, opened

# One unit of six rests in memory, beside the staging of two ranks.
MIXED = BlockSwapArgs(blocks_to_swap=6, prefetch_blocks=1, ram_budget=680_000)
FILE = BlockSwapArgs(blocks_to_swap=5, prefetch_blocks=2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(fresh("original").state_dict(), tmp_path / "m.safetensors", metadata("original"))
    return tmp_path / "m.safetensors"


def found_in(
    scenario: Scenario,
    path: Path,
    meddle: Callable[[Pool], None] | None = None,
    others: Others | None = None,
    args: BlockSwapArgs = FILE,
) -> list[str]:
    """Forwards as one of two ranks; race kinds, and whether an output was wrong."""
    expected, given = reference("original", scenario.device), inputs("original", scenario.device)
    bare = skeleton("original")
    assert bare is not None
    with scenario.watched() as found:
        model: Any = opened(path, bare, args, others or Others(1, 2))
        if meddle is not None:
            meddle(scenario.pools[-1])
        with model.blockswap, torch.no_grad():
            torch.accelerator.synchronize()
            outs = [model(**given) for _ in range(3)]
            wait_for_readers(scenario.pools[-1])
            torch.accelerator.synchronize()
            found += ["output" for out in outs if not torch.equal(out.cpu(), expected)]
    return found


@pytest.mark.parametrize(
    ("parts", "args"), [(2, FILE), (3, FILE), (2, MIXED)], ids=["2", "3", "2, beside memory"]
)
def test_nothing_is_found_in_the_engine_as_it_is(
    scenario: Scenario, path: Path, parts: int, args: Any
) -> None:
    for part in (0, parts - 1):
        others = Others(part, parts)
        assert found_in(scenario, path, others=others, args=args) == []
        in_memory = 0 if args is FILE else 1
        # Of what is brought ahead of a fourth forward, what comes from memory is gathered, too.
        assert len(others.gathered) == len(others.posted)
        assert 3 * (5 + in_memory) <= len(others.gathered) <= 3 * 5 + 4 * in_memory
        assert len([n for n in others.gathered if n in others.from_file]) == 3 * 5
        assert [entry for entry, _ in others.posted] == list(range(len(others.posted)))


def test_a_gather_must_wait_on_the_host_for_the_read_of_the_own_part(
    scenario: Scenario, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait for an event that the reader has not recorded yet is a no-op."""
    gate = Gate(0.5)

    def hold_reads(pool: Pool) -> None:
        stall_reads(monkeypatch, before={"blocks.2": gate.hold})

    monkeypatch.setattr(Gathers, "_read", lambda self, gather: True)
    found = found_in(scenario, path, hold_reads)
    assert gate.reached.is_set()
    assert found


@pytest.mark.parametrize("entry", [0, 1, 4, 7])
def test_from_where_the_ranks_part_each_reads_all_of_every_block(
    scenario: Scenario, path: Path, entry: int
) -> None:
    others = Others(0, 2, parts_from=entry)
    assert found_in(scenario, path, others=others) == []
    assert len(others.gathered) == entry


def test_a_read_that_fails_is_told_to_the_others_at_once(
    scenario: Scenario, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("the disk is gone")

    others = Others(0, 2)
    bare: Any = skeleton("original")
    model: Any = opened(path, bare, FILE, others)
    stall_reads(monkeypatch, before={"blocks.2": fail})
    with model.blockswap, torch.no_grad():
        with pytest.raises(ReadError, match="the disk is gone"):
            model(**inputs("original", scenario.device))
        assert others.withdrawn == ["blocks.2"]
