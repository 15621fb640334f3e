"""Building: once for many processes, and clear words where it cannot be done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import simaccel as sim
from simaccel import _build, _register

SLOW_BUILD = """
import sys, time
sys.path.insert(0, {tests!r})
from simaccel import _build

def build(library):
    with open({log!r}, "a") as log:
        log.write("built\\n")
    time.sleep(0.5)
    library.write_bytes(b"")

_build._build = build
_build._import = lambda library: print(library.exists())
_build.load()
"""


def test_two_processes_build_once(tmp_path, monkeypatch):
    monkeypatch.setenv(_build.CACHE_VARIABLE, str(tmp_path / "cache"))
    log = tmp_path / "log"
    script = SLOW_BUILD.format(tests=str(Path(sim.__file__).parents[1]), log=str(log))
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["True\n"] * 2
    assert log.read_text() == "built\n"


def test_changed_sources_get_another_library(tmp_path, monkeypatch):
    before = _build.library_path()
    monkeypatch.setattr(_build, "SOURCE_FOLDER", tmp_path)
    (tmp_path / "clock.cpp").write_text("// changed")
    assert _build.library_path() != before


def test_every_source_is_in_a_unit():
    parts = [part for unit in _build.UNITS.values() for part in unit]
    assert sorted(parts) == sorted(path.stem for path in _build.SOURCE_FOLDER.glob("*.cpp"))


def test_no_compiler_is_a_reason_to_skip_but_not_in_ci(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(_register, "ensure", lambda: _build._build(tmp_path / "x" / "library.so"))
    monkeypatch.delenv("CI", raising=False)
    assert "no C++ compiler" in (sim.unavailable_reason() or "")
    monkeypatch.setenv("CI", "1")
    with pytest.raises(sim.CannotBuild, match="no C\\+\\+ compiler"):
        sim.unavailable_reason()
