"""Figures are kept per hardware, used again, and taken anew when they cannot be trusted."""

import dataclasses
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from probe_samples import SMALL

from blockswap.errors import DeviceError
from blockswap.probe import DevicePart, DiskPart, cached_probe, measure, probe
from blockswap.probe.hardware import cpu_name, hardware_of
from blockswap.probe.kept import kept_path
from blockswap.stream.device import open_device


def kept_file() -> Path:
    return kept_path(hardware_of(open_device("cpu")))


def edit(**changes: Any) -> None:
    path = kept_file()
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_second_time_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = probe("cpu", place=tmp_path, limits=SMALL)
    assert first.measured
    assert first.path == str(kept_file())
    monkeypatch.setattr(measure, "compute_figures", None)
    monkeypatch.setattr(measure, "measure_disk", None)
    again = probe("cpu", place=tmp_path, limits=SMALL)
    assert not again.measured
    assert again == dataclasses.replace(first, measured=False)
    assert cached_probe("cpu", place=tmp_path) == again


def test_another_folder_measures_only_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = probe("cpu", limits=SMALL)
    assert first.disk is None
    monkeypatch.setattr(measure, "compute_figures", None)
    second = probe("cpu", place=tmp_path, limits=SMALL)
    assert second.device == first.device
    assert second.machine.disk is not None
    assert second.machine == dataclasses.replace(first.machine, disk=second.machine.disk)


def test_folders_of_one_file_system_share_its_figures(tmp_path: Path) -> None:
    first = probe("cpu", place=tmp_path, limits=SMALL)
    (tmp_path / "below").mkdir()
    second = probe("cpu", place=tmp_path / "below", limits=SMALL)
    assert not second.measured
    assert second.machine == first.machine


def test_fresh_measures_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    probe("cpu", place=tmp_path, limits=SMALL)
    edit(device={"no": "longer asked"})
    assert probe("cpu", place=tmp_path, limits=SMALL, fresh=True).measured
    assert not probe("cpu", place=tmp_path, limits=SMALL).measured


def test_nothing_is_cached_before_the_first_probe(cache: Path) -> None:
    assert cached_probe("cpu") is None
    assert not cache.exists()


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", '{"format": 1}', "\x00" * 100, '"' + "[" * 10, "[" * 100_000],
)
def test_a_corrupt_file_is_told_and_replaced(content: str) -> None:
    kept_file().parent.mkdir(parents=True)
    kept_file().write_text(content)
    found = probe("cpu", limits=SMALL)
    assert found.measured
    assert found.sentences[0].endswith("probed anew")
    assert str(kept_file()) in found.sentences[0]
    again = probe("cpu", limits=SMALL)
    assert not again.measured
    assert again.machine == found.machine


@pytest.mark.parametrize("format_", [0, 2, "1", None])
def test_another_version_is_told_and_replaced(format_: object) -> None:
    probe("cpu", limits=SMALL)
    edit(format=format_)
    found = probe("cpu", limits=SMALL)
    assert found.measured
    assert "are of another version: probed anew" in found.sentences[0]


@pytest.mark.parametrize(
    "damage",
    [
        {"name": 3},
        {"flops": {"bfloat16": -1.0}},
        {"flops": {"bfloat16": "fast"}},
        {"flops": [1]},
        {"memory_rate": 0},
        {"memory_rate": float("nan")},
        {"host_bytes": 1.5},
        {"disk": {"readers": 4}},
    ],
)
def test_figures_that_cannot_be_are_not_used(damage: dict[str, Any]) -> None:
    probe("cpu", limits=SMALL)
    device = json.loads(kept_file().read_text())["device"]
    edit(device=device | {"machine": device["machine"] | damage})
    assert cached_probe("cpu") is None
    found = probe("cpu", limits=SMALL)
    assert found.measured
    assert "cannot be read: probed anew" in found.sentences[0]


@pytest.mark.parametrize(
    ("days", "measured"), [(0, False), (179, False), (181, True), (-400, True)]
)
def test_old_figures_are_taken_anew(days: int, measured: bool) -> None:
    probe("cpu", limits=SMALL)
    device = json.loads(kept_file().read_text())["device"]
    then = datetime.now(timezone.utc) - timedelta(days=days, hours=1)
    edit(device=device | {"measured_at": then.isoformat()})
    found = probe("cpu", limits=SMALL)
    assert found.measured is measured
    assert any("days old: probed anew" in sentence for sentence in found.sentences) is measured


def test_old_figures_of_a_disk_are_taken_anew(tmp_path: Path) -> None:
    probe("cpu", place=tmp_path, limits=SMALL)
    disks = json.loads(kept_file().read_text())["disks"]
    then = (datetime.now(timezone.utc) - timedelta(days=200)).isoformat()
    edit(disks={key: disk | {"measured_at": then} for key, disk in disks.items()})
    found = cached_probe("cpu", place=tmp_path)
    assert found is not None
    assert found.disk is None
    assert found.sentences[0].startswith("figures of 1 disk kept in ")
    assert probe("cpu", place=tmp_path, limits=SMALL).measured
    assert cached_probe("cpu", place=tmp_path) == probe("cpu", place=tmp_path, limits=SMALL)


def test_other_hardware_has_a_file_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    probe("cpu", limits=SMALL)
    monkeypatch.setattr("blockswap.probe.hardware.cpu_name", lambda: "another CPU")
    assert cached_probe("cpu") is None


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BLOCKSWAP_CACHE", str(tmp_path / "file"))
    found = probe("cpu", limits=SMALL)
    assert found.measured
    assert found.path is None
    assert found.sentences[0].startswith("the figures are not kept: cannot write ")


def test_a_disk_that_was_not_measured_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"1")
    assert probe("cpu", place=tmp_path / "small", limits=SMALL).machine.disk is None
    assert probe("cpu", place=tmp_path, limits=SMALL).machine.disk is not None


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceError):
        probe("meta", limits=SMALL)


def test_all_of_it_survives_json(tmp_path: Path) -> None:
    found = probe("cpu", place=tmp_path, limits=SMALL)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["machine"]["name"] == cpu_name()
    assert isinstance(found.device, DevicePart)
    assert isinstance(found.disk, DiskPart)
    assert set(told) == {field.name for field in dataclasses.fields(found)}
