"""The disk benchmark's arithmetic on fixed figures, and its children on a tiny model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.disk_tier import run
from benchmarks.disk_tier.how import runner as running
from benchmarks.disk_tier.how.folder import Folder, write_model
from benchmarks.disk_tier.how.runner import Runner
from benchmarks.disk_tier.tell import markdown, summary_table, write_chart
from benchmarks.disk_tier.what import (
    OURS,
    RESIDENT,
    Clip,
    Model,
    Row,
    Sample,
    Track,
    in_order,
    misses,
)
from benchmarks.shared import results
from benchmarks.shared.raw_read import CHUNK, SECTOR, _chunks, _joined
from memory_group import python, unavailable_reason

LIMIT = 1_000_000_000
PEER = "safetensors mmap"


def track(*seconds: float, digest: str = "same", **changes: object) -> Track:
    samples = tuple(Sample(one, 100, digest) for one in seconds)
    return Track(samples=samples, **({"limit_bytes": LIMIT} | changes))


def row(ours: Track, raw: list[float], peer: Track | None = None, compute: float = 1.0) -> Row:
    tracks = {RESIDENT: track(compute, compute, compute, limit_bytes=None), OURS: ours}
    if peer is not None:
        tracks[PEER] = peer
    slow = [2 * seconds for seconds in raw]
    return Row(Model(10, "bfloat16"), Clip(64, 64), LIMIT, tracks, {1: slow, 4: raw})


@pytest.mark.parametrize(
    ("raw", "kind", "bound"),
    [(0.4, "compute", 1.0), (0.8, "between", 1.0), (1.5, "between", 1.5), (2.0, "disk", 2.0)],
)
def test_rows_are_held_against_what_binds(raw, kind, bound):
    found = row(track(3.0, 3.0, 3.0), [raw, raw, raw])
    assert found.kind == kind
    assert found.bounds == [bound] * 3
    assert found.over_bound(OURS) == pytest.approx(3.0 / bound)


def test_ratios_are_taken_round_by_round():
    found = row(track(2.0, 4.0, 9.0), [2.0, 4.0, 6.0])
    assert found.ratios(OURS, found.bounds) == [1.0, 1.0, 1.5]
    assert found.over_bound(OURS) == 1.0


@pytest.mark.parametrize(
    ("ours", "raw", "missed"),
    [
        (1.02, 0.5, False),
        (1.03, 0.5, True),
        (2.1, 2.0, False),
        (2.11, 2.0, True),
        (1.09, 0.9, True),
    ],
)
def test_targets(ours, raw, missed):
    found = misses(row(track(ours, ours, ours), [raw, raw, raw]))
    assert bool(found) is missed


def test_other_bits_and_a_killed_run_of_ours_are_misses():
    assert "output" in misses(row(track(1.0, 1.0, 1.0, digest="other"), [0.1] * 3))[0]
    assert "did not run" in misses(row(Track(killed=(LIMIT,)), [0.1] * 3))[0]
    assert "did not run" in misses(row(track(1, 1, 1, killed=(LIMIT,)), [0.1] * 3))[0]


def test_a_faster_peer_is_a_miss_only_under_the_same_limit_and_in_every_round():
    ours = track(1.0, 1.0, 1.0)
    assert misses(row(ours, [0.1] * 3, track(0.9, 0.9, 0.9)))
    assert not misses(row(ours, [0.1] * 3, track(0.9, 0.9, 1.1)))
    assert not misses(row(ours, [0.1] * 3, track(0.99, 0.99, 0.99)))
    assert not misses(row(ours, [0.1] * 3, track(0.5, 0.5, 0.5, killed=(LIMIT,))))


def test_where_the_disk_binds_a_peer_may_not_be_as_fast_even_once():
    ours = track(2.0, 2.0, 2.0)
    assert misses(row(ours, [2.0] * 3, track(9.0, 2.0, 9.0)))
    assert not misses(row(ours, [2.0] * 3, track(9.0, 2.1, 9.0)))


def test_killed_and_failed_rows_stay_in_the_tables(tmp_path: Path):
    rows = [
        row(track(2.0, 2.0, 2.0), [2.0] * 3, Track(killed=(LIMIT, 2 * LIMIT))),
        row(track(2.0, 2.0, 2.0), [2.0] * 3, track(3.0, 3.0, 3.0, killed=(LIMIT,))),
        row(track(2.0, 2.0, 2.0), [2.0] * 3, Track(error="no such thing")),
    ]
    said = markdown(rows, 2)
    assert "killed in 1,000 MB and 2,000 MB" in said
    assert "Raw read: 4.000 s with 1, 2.000 s with 4 at a time; 3 rounds" in said
    rows[0] = replace(rows[0], discarding=(1.5, 1.5, 1.5))
    assert "2.000 s with 4 at a time, 1.500 s discarding; 3 rounds" in markdown(rows, 2)
    rows[0] = replace(rows[0], both=(2.5, 2.5, 2.5))
    assert "Both at once: 2.500 s, ours 0.800 x that; 3 rounds" in markdown(rows, 2)
    assert "no such thing" in said
    table = summary_table(rows)
    assert "| 1.00 | 2.00 | 2.50 | disk |" in table
    assert "| killed |" in table
    assert "killed; 1.500 in 1,000 MB" in table
    assert "| failed |" in table
    write_chart(rows, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000
    assert json.loads(json.dumps([one.as_json() for one in rows]))


def test_rows_that_are_not_measured_anew_are_kept(tmp_path: Path, monkeypatch):
    bf16 = row(track(2.0, 2.0, 2.0), [2.0] * 3, Track(killed=(LIMIT,), error="no more"))
    bf16 = replace(bf16, discarding=[1.5] * 3, both=[2.5] * 3)
    fp32 = replace(bf16, model=Model(10, "float32"))
    longer = replace(bf16, clip=Clip(2000, 512))
    data = {"rows": [one.as_json() for one in (bf16, fp32)]}
    (tmp_path / "disk_tier.json").write_text(json.dumps(data))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert run.kept_rows("") == []
    assert run.kept_rows("10 blocks") == []
    (kept,) = run.kept_rows("float32")
    assert markdown([kept], 2) == markdown([bf16], 2)
    assert in_order([longer, fp32, kept]) == [kept, fp32, longer]


@pytest.mark.root
def test_a_child_that_does_not_answer_is_ended(monkeypatch):
    if (reason := unavailable_reason()) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(running, "PATIENCE_SECONDS", 0.1)
    child = running.Child(python("-c", "import time; time.sleep(600)"), None)
    try:
        with pytest.raises(running.Ended, match=r"ended after 0 s without an answer"):
            child.ask()
    finally:
        child.close()


class ToldChild:
    """Stands for a child: notes when it is told something, and when it is listened to."""

    def __init__(self, name: str, answer: str, log: list[str]) -> None:
        self._name, self._answer, self._log = name, answer, log

    def ask(self, question: str) -> str:
        self._log.append(f"ask {question}")
        return str(len(self._log))

    def tell(self, question: str) -> None:
        self._log.append(f"tell {self._name}")

    def listen(self) -> str:
        self._log.append(f"listen {self._name}")
        return self._answer


@pytest.mark.parametrize(("read", "both"), [("0.5", 2.0), ("3.5", 3.5)])
def test_a_forward_and_a_read_at_once_are_both_begun_before_either_is_waited_for(read, both):
    log: list[str] = []
    runner = Runner(RESIDENT, Folder(Path("unused")), LIMIT)
    answer = json.dumps({"seconds": 2.0, "read_bytes": 0, "digest": "same"})
    runner.child = ToldChild("forward", answer, log)
    assert runner.beside(Clip(64, 64), ToldChild("read", read, log)) == both
    assert [line.split()[0] for line in log] == ["tell", "tell", "listen", "listen"]


def test_every_counted_raw_read_comes_behind_one_of_its_process():
    logs: list[list[str]] = [[], []]
    told = run._raw_reads([ToldChild("read", "", log) for log in logs])
    assert logs == [["ask 2", "ask 2", "ask 4"]] * 2
    assert told == {2: 2.0, 4: 3.0}, "the first answer of each is not counted"


def test_models_that_are_not_there_are_refused_with_the_names_of_those_that_are(capsys):
    if unavailable_reason() is not None:
        pytest.skip("the memory of the methods cannot be limited")
    with pytest.raises(SystemExit):
        run.main(["--models", "50 blocks"])
    assert "no model has '50 blocks' in its name: they are 10 blocks, bf" in capsys.readouterr().err


def test_reads_are_joined_widened_to_sectors_and_cut():
    leaves = [(8, 100), (108, 5000), (3 * SECTOR, 1), (100 * SECTOR, CHUNK + 1)]
    assert list(_joined(leaves)) == [
        (0, 2 * SECTOR),
        (3 * SECTOR, SECTOR),
        (100 * SECTOR, CHUNK + SECTOR),
    ]
    assert list(_chunks([(0, CHUNK + SECTOR)], CHUNK)) == [(0, CHUNK), (CHUNK, SECTOR)]
    assert list(_joined([])) == []


@pytest.mark.parametrize(("tokens", "latent"), [(1, (2, 2)), (64, (16, 16)), (390, (30, 52))])
def test_clips_are_nearly_square(tokens, latent):
    assert Clip(tokens, 4).latent == latent


@pytest.mark.slow
@pytest.mark.parametrize("method", [RESIDENT, OURS, PEER, "accelerate from safetensors"])
def test_a_child_answers_each_line(method, tmp_path: Path):
    root = tmp_path / "model"
    write_model(Model(1, "bfloat16"), root)
    module = [sys.executable, "-m", "benchmarks.disk_tier.how.child"]
    subprocess.run([*module, "prepare", method, str(root)], check=True)
    question = json.dumps({"tokens": 1, "text": 2}) + "\n"
    done = subprocess.run(
        [*module, "run", method, str(root)],
        input=2 * question,
        check=True,
        text=True,
        capture_output=True,
    )
    opened, first, second = map(json.loads, done.stdout.splitlines())
    assert opened == {"opened": True}
    assert first["digest"] == second["digest"]
    assert set(first) == {"seconds", "read_bytes", "digest"}
