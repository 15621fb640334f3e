"""The picture, looked at by its pixels."""

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from report_samples import Speeds, measured_of, plan_of

from blockswap.errors import OutputError
from blockswap.events import Measured, Visit
from blockswap.report import draw_timeline
from blockswap.report.canvas import round_step
from blockswap.report.timeline import _Axis

RESIDENT, STREAMED, WAITING = (0xA8, 0xC5, 0xE2), (0x1F, 0x5F, 0xA8), (0xD4, 0x15, 0x2A)
COPY, READ = (0x00, 0x9E, 0x73), (0xF0, 0xB4, 0x29)
BELOW_LEGEND = 160


def colours_of(path: Path, below: int = BELOW_LEGEND) -> dict[Any, int]:
    """Pixels of each colour under the legend."""
    with Image.open(path) as picture:
        lanes = picture.convert("RGB").crop((0, below, picture.width, picture.height))
        return {colour: count for count, colour in lanes.getcolors(1 << 24) or []}


def test_bars_have_the_area_of_their_share_of_time(tmp_path: Path) -> None:
    plan = plan_of("RmRm")
    draw_timeline(plan, measured_of(plan, speeds=Speeds(copy=0.005)), tmp_path / "t.png")
    found = colours_of(tmp_path / "t.png")
    assert found[RESIDENT] == pytest.approx(found[STREAMED], rel=0.1)
    assert found[COPY] > 0
    assert READ not in found


def test_waiting_is_drawn_in_red_in_proportion(tmp_path: Path) -> None:
    plan = plan_of("mm")
    measured = measured_of(plan, speeds=Speeds(compute=0.01, copy=0.02))
    draw_timeline(plan, measured, tmp_path / "t.png")
    found = colours_of(tmp_path / "t.png")
    waited = sum(v.exposed_seconds for v in measured.visits)
    computed = sum(v.compute_seconds for v in measured.visits)
    assert found[WAITING] / found[STREAMED] == pytest.approx(waited / computed, rel=0.1)


@pytest.mark.parametrize(("waited", "seen"), [(0.05, True), (0.01, True), (0.0001, False)])
def test_a_wait_is_seen_from_a_quarter_of_a_pixel(
    tmp_path: Path, waited: float, seen: bool
) -> None:
    measured = measured_of(plan_of("RR"), speeds=Speeds(compute=10.0))
    late = replace(measured.visits[1], started=10.0 + waited)
    visits = (measured.visits[0], late, *measured.visits[2:])
    draw_timeline(plan_of("RR"), replace(measured, visits=visits), tmp_path / "t.png")
    red = [colour for colour in colours_of(tmp_path / "t.png") if colour[0] > colour[1] + 40]
    assert bool(red) == seen


def test_disk_reads_are_drawn(tmp_path: Path) -> None:
    plan = plan_of("Rd", device="cpu")
    draw_timeline(plan, measured_of(plan), tmp_path / "t.png")
    found = colours_of(tmp_path / "t.png")
    assert found[READ] > 0
    assert COPY not in found


@pytest.mark.parametrize("width", [800, 1600, 3200])
def test_the_picture_has_the_width_asked_for(tmp_path: Path, width: int) -> None:
    plan = plan_of("RmmmRmmmRmmdRmmm" * 3)
    draw_timeline(plan, measured_of(plan, forwards=4), tmp_path / "t.png", forwards=3, width=width)
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.width == width


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    plan = plan_of("RmmdR")
    for name in ("a.png", "b.png"):
        draw_timeline(plan, measured_of(plan), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_nothing_timed_gives_a_picture_that_says_so(tmp_path: Path) -> None:
    draw_timeline(plan_of("Rm"), Measured(()), tmp_path / "t.png")
    found = colours_of(tmp_path / "t.png", below=0)
    assert STREAMED not in found
    assert len(found) > 1


def test_visits_that_took_no_time_can_be_drawn(tmp_path: Path) -> None:
    instant = Visit(0, "blocks.0", "resident", None, 0, 1.0, 1.0, 1.0)
    draw_timeline(plan_of("R"), Measured((instant,)), tmp_path / "t.png")
    assert (tmp_path / "t.png").is_file()


def test_many_short_forwards_can_be_drawn(tmp_path: Path) -> None:
    plan = plan_of("Rm")
    draw_timeline(plan, measured_of(plan, forwards=90), tmp_path / "t.png", forwards=90)
    assert colours_of(tmp_path / "t.png")[STREAMED] > 0


def test_a_device_without_slots_can_be_drawn(tmp_path: Path) -> None:
    plan = plan_of("RR", slots=0, prefetch=0)
    draw_timeline(plan, measured_of(plan), tmp_path / "t.png")
    assert WAITING not in colours_of(tmp_path / "t.png")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    plan = plan_of("Rm")
    with pytest.raises(OutputError, match="is not there"):
        draw_timeline(plan, measured_of(plan), tmp_path / "missing" / "t.png")


def test_without_pillow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without_pillow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "PIL":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    plan = plan_of("Rm")
    with pytest.raises(OutputError, match="pip install pillow"):
        draw_timeline(plan, measured_of(plan), tmp_path / "t.png")


def test_the_micro_sign_is_drawn_as_a_letter_of_the_font(tmp_path: Path) -> None:
    from blockswap.report.canvas import new_canvas

    canvas = new_canvas(1600, 100)
    assert canvas.width_of("12 µs", 16) == canvas.width_of("12 us", 16)


@given(st.floats(1e-7, 1e5), st.floats(0.0, 1e3))
@example(0.6, 0.0)
@settings(max_examples=200)
def test_ticks_are_few_distinct_and_inside(span: float, low: float) -> None:
    axis = _Axis(low, low + span)
    ticks = axis.ticks()
    labels = [label for _, label in ticks]
    assert 6 <= len(ticks) <= 17
    assert len(set(labels)) == len(labels)
    assert all(low <= second <= low + span * (1 + 1e-6) + 1e-9 for second, _ in ticks)


@pytest.mark.parametrize(
    ("most", "step"),
    [(0.6 / 6, 0.1), (0.199, 0.1), (0.2, 0.2), (4.9, 2.0), (5.0, 5.0), (99.0, 50.0)],
)
def test_the_step_of_an_axis_is_round(most: float, step: float) -> None:
    assert round_step(most) == pytest.approx(step)


def test_a_repeated_block_is_drawn_twice(tmp_path: Path) -> None:
    plan = plan_of("R")
    measured = measured_of(plan, forwards=1)
    again = replace(measured.visits[0], arrived=0.02, started=0.02, ended=0.03)
    draw_timeline(plan, replace(measured, visits=(*measured.visits, again)), tmp_path / "t.png")
    draw_timeline(plan, measured, tmp_path / "once.png")
    once, twice = colours_of(tmp_path / "once.png"), colours_of(tmp_path / "t.png")
    assert twice[RESIDENT] < once[RESIDENT]
