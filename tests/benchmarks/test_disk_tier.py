"""The disk benchmark's arithmetic on fixed figures, and its children on a tiny model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.disk.folder import Model
from benchmarks.disk.raw import CHUNK, SECTOR, _chunks, _joined
from benchmarks.disk.report import markdown, summary_table, write_chart
from benchmarks.disk.rows import OURS, RESIDENT, Row, Sample, Track, misses
from benchmarks.disk.workload import Clip

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
    assert "no such thing" in said
    table = summary_table(rows)
    assert "| killed |" in table
    assert "killed; 1.500 in 1,000 MB" in table
    assert "| failed |" in table
    write_chart(rows, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000
    assert json.loads(json.dumps([one.as_json() for one in rows]))


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
    from benchmarks.disk.folder import write_model

    root = tmp_path / "model"
    write_model(Model(1, "bfloat16"), root)
    module = [sys.executable, "-m", "benchmarks.disk.child"]
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
