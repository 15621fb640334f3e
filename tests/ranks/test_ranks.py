"""Several processes with one model: equal outputs, weights once a host, and what stops them all."""

import os
from pathlib import Path
from typing import Any

import pytest
from fleet import run_ranks, values


@pytest.mark.parametrize(
    ("family", "gives", "args"),
    [
        ("mini", "weights", {"blocks": "1-3"}),
        ("diffusers-vace", "meta", None),
        ("original", "meta", {"blocks_to_swap": 4}),
    ],
)
def test_on_the_cpu_every_rank_computes_as_one_process(family: str, gives: str, args: Any) -> None:
    found = values(run_ranks(2, "equal", device="cpu", family=family, gives=gives, args=args))
    for one in found:
        assert one["equal"] == [True] * 3
        assert one["closed"]
        assert one["said"]


@pytest.mark.parametrize("mode", ["sim-eager", "sim-lazy"])
@pytest.mark.parametrize("args", [{"blocks": "0,2-3"}, {"blocks_to_swap": 5, "prefetch_blocks": 0}])
def test_on_an_accelerator_that_cannot_lock_shared_memory_it_is_staged(
    sim_module: Any, mode: str, args: Any
) -> None:
    found = values(run_ranks(2, "equal", device=mode, family="mini", gives="meta", args=args))
    for one in found:
        assert one["equal"] == [True] * 3
        assert one["closed"]
        assert one["streamed"]
        assert one["said"]
        assert one["staged"]


@pytest.mark.parametrize("family", ["original", "diffusers"])
def test_a_file_is_read_once_for_all_ranks(family: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    found = values(run_ranks(2, "opened", family=family, path=str(path)))
    assert all(one["equal"] == [True] * 3 for one in found)
    if family == "original":  # a skeleton is given: no library is imported meanwhile
        weights = path.stat().st_size
        assert found[0]["read"] >= weights
        assert found[1]["read"] < weights // 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("other weights", "is not the same here as on rank 0"),
        ("other model", "rank 1 has another model than rank 0 (5 units, not 6)"),
        ("args", "Invalid range: '3-1'"),
        ("dies", "ended or did not come within 3 s"),
        ("dies in opening", "ended or did not come within 3 s"),
        ("never comes", "ended or did not come within 3 s"),
        ("nobody has weights", "none of ranks 0, 1 of this host has weights"),
    ],
)
def test_a_fault_of_one_rank_is_a_sentence_on_all_of_them(fault: str, said: str) -> None:
    before = sorted(os.listdir("/dev/shm"))
    found = run_ranks(2, "refused", fault=fault)
    alive = found[:1] if fault.startswith(("dies", "never comes")) else found
    assert [one.code for one in found[1:]] == [-9 if fault.startswith("dies") else 0]
    assert sorted(os.listdir("/dev/shm")) == before
    for one in values(alive):
        assert said in one
        assert one.endswith("[]")


@pytest.mark.parametrize("when", ["in a pause", "in closing"])
def test_a_rank_that_is_killed_takes_no_weights_with_it(when: str) -> None:
    before = sorted(os.listdir("/dev/shm"))
    killed, other = run_ranks(2, "left_alone", when=when)
    assert sorted(os.listdir("/dev/shm")) == before
    assert killed.code == -9
    assert other.value == [True, True]


LIST, COUNT, AUTOMATIC = {"blocks": "1-3"}, {"blocks_to_swap": 4}, None
IN_FILE = {"ram_budget": 0}


@pytest.mark.parametrize(
    ("count", "cases"),
    [
        (
            2,
            [
                ("diffusers", "ulysses", "before", LIST, False),
                ("diffusers", "ulysses", "after", AUTOMATIC, False),
                ("diffusers", "ring", "after", COUNT, False),
                ("vace", "data", "", AUTOMATIC, False),
                ("diffusers", "data", "", COUNT, False),
                ("vace", "data", "", LIST, True),
                ("diffusers", "ulysses", "before", COUNT | IN_FILE, True),
                ("vace", "data", "", LIST | IN_FILE, True),
                ("diffusers", "ring", "before", AUTOMATIC, True),
                ("diffusers", "ring", "before", COUNT | IN_FILE, True),
                ("vace", "ulysses", "after", AUTOMATIC, False),
                ("vace", "ulysses", "before", LIST | IN_FILE, True),
            ],
        ),
        (
            4,
            [
                ("diffusers", "ulysses", "after", COUNT, False),
                ("vace", "data", "", COUNT | IN_FILE, True),
                ("diffusers", "ulysses", "before", LIST | IN_FILE, True),
                ("diffusers", "ring", "before", LIST | IN_FILE, True),
                ("diffusers", "data", "", AUTOMATIC, True),
                ("vace", "ulysses", "before", COUNT | IN_FILE, True),
            ],
        ),
    ],
)
def test_parallel_ranks_compute_as_unswapped_ones(count: int, cases: Any, tmp_path: Path) -> None:
    """diffusers' Ulysses and ring, and a prompt for each rank; from memory and from a folder.

    Its VACE class has no plan for context parallelism (`_cp_plan`): here it is given one.
    """
    found = values(run_ranks(count, "context_parallel", folder=str(tmp_path), cases=cases))
    for one in found:
        assert len(one) == len(cases)
        for case, equal in one.items():
            assert all(equal), case


@pytest.mark.parametrize(("how", "count"), [("ulysses", 2), ("ring", 4)])
def test_experts_in_their_files_under_context_parallelism(
    how: str, count: int, tmp_path: Path
) -> None:
    given = {"folder": str(tmp_path), "how": how, "args": COUNT | IN_FILE}
    for equal in values(run_ranks(count, "parallel_experts", **given)):
        assert all(all(one) for one in equal), equal
