"""Predictions are kept, found again only for the same question, and never in the way."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from blockswap.layout.geometry import WanGeometry
from blockswap.plan.inputs.workload import Workload
from blockswap.predict import cache as cache_module
from blockswap.predict import predict_forward
from blockswap.predict.cache import cache_folder, library_versions, remembered

TINY = WanGeometry(
    dim=32, ffn_dim=64, num_layers=2, num_heads=2, in_channels=4, out_channels=4, text_dim=24
)
CLIP = Workload(64, 64, 5)
QUESTION = {"kind": "test", "size": 3}


def files(cache: Path) -> list[Path]:
    return sorted((cache / "predictions").iterdir())


@pytest.fixture(autouse=True)
def no_warnings() -> None:
    warnings.simplefilter("error", RuntimeWarning)


def never() -> None:
    raise AssertionError("the answer is in the cache")


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BLOCKSWAP_CACHE", "/there")
    assert cache_folder() == Path("/there")
    monkeypatch.delenv("BLOCKSWAP_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "blockswap"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_folder() == tmp_path / ".cache" / "blockswap"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "blockswap"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "blockswap"


def test_asked_once(cache: Path) -> None:
    assert remembered(QUESTION, lambda: {"bytes": 7}) == {"bytes": 7}
    assert remembered(QUESTION, never) == {"bytes": 7}
    assert remembered({**QUESTION, "size": 4}, lambda: 8) == 8
    assert [file.suffix for file in files(cache)] == [".json", ".json"]  # no draft is left


def test_another_schema_is_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    remembered(QUESTION, lambda: 1)
    monkeypatch.setattr(cache_module, "_SCHEMA", cache_module._SCHEMA + 1)
    assert remembered(QUESTION, lambda: 2) == 2


@pytest.mark.parametrize("spoilt", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b"null", b"swapped"])
def test_a_spoilt_file_is_a_sentence_and_made_anew(cache: Path, spoilt: bytes) -> None:
    remembered(QUESTION, lambda: 1)
    (file,) = files(cache)
    if spoilt == b"swapped":
        kept = json.loads(file.read_text())
        kept["question"]["size"] = 99
        spoilt = json.dumps(kept).encode()
    file.write_bytes(spoilt)
    with pytest.warns(RuntimeWarning, match="cannot be used .* worked out anew"):
        assert remembered(QUESTION, lambda: 2) == 2
    assert remembered(QUESTION, never) == 2


def test_a_folder_that_cannot_be_made_is_a_sentence(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.joinpath("file").write_text("")
    monkeypatch.setenv("BLOCKSWAP_CACHE", str(cache.parent / "file"))
    with pytest.warns(RuntimeWarning) as told:
        assert remembered(QUESTION, lambda: 5) == 5
    assert "could not be kept" in str(told[-1].message)
    assert "BLOCKSWAP_CACHE" in str(told[-1].message)


def test_a_failure_while_writing_leaves_no_draft(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="no space"):
        remembered(QUESTION, lambda: 5)
    assert files(cache) == []


def test_versions_without_importing() -> None:
    found = library_versions("torch", "no-such-distribution")
    assert found["torch"]
    assert found["no-such-distribution"] == ""


def test_every_field_that_matters_is_part_of_the_question(cache: Path) -> None:
    first = predict_forward(TINY, CLIP)
    for geometry, clip in [
        (replace(TINY, num_layers=3), CLIP),
        (replace(TINY, in_channels=8), CLIP),
        (TINY, replace(CLIP, width=80)),
        (TINY, replace(CLIP, batch=2)),
        (TINY, replace(CLIP, dtype="float32")),
        (TINY, replace(CLIP, attention="math")),
        (TINY, replace(CLIP, kernels="portable")),
        (TINY, replace(CLIP, per_token_timestep=True)),
        (TINY, replace(CLIP, text_tokens=64)),
    ]:
        assert predict_forward(geometry, clip) != first, (geometry, clip)
    assert len(files(cache)) == 10
    # What no forward shows is not: these are the same model.
    assert predict_forward(replace(TINY, naming="diffusers", unused=("x",)), CLIP) == first
    assert len(files(cache)) == 10


def test_what_is_kept_is_told_without_torch(cache: Path) -> None:
    cost = predict_forward(TINY, CLIP)
    code = (
        "import sys\n"
        "from blockswap.layout.geometry import WanGeometry\n"
        "from blockswap.plan.inputs.workload import *\n"
        "from blockswap.predict import predict_forward\n"
        f"print(predict_forward({TINY!r}, {CLIP!r}))\n"
        "sys.exit('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip()) == (0, repr(cost)), ran.stderr
