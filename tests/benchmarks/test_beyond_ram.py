"""Benchmarks of checkpoints beyond the RAM: what they measure of a small one, and make of it."""

import importlib
import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.beyond_ram import run
from benchmarks.beyond_ram.case import READERS, Case
from benchmarks.beyond_ram.judge import Round, misses, rows_of
from benchmarks.beyond_ram.measure import measure
from benchmarks.beyond_ram.tell import report
from benchmarks.disk_h3.what import CASE as H3
from benchmarks.disk_h3.what import MODEL, inputs_for
from benchmarks.shared import bounded_memory
from benchmarks.shared.options import folder_of
from benchmarks.shared.results import RESULTS

NAMES = ("disk_14b", "disk_h3")
SMALL = {
    "num_attention_heads": 2, "attention_head_dim": 16, "hidden_size": 24, "num_layers": 2,
    "ffn_dim": 32, "text_dim": 8, "freq_dim": 8, "time_embed_hidden_dim": 24,
    "time_embed_dim": 16, "rope_freq_dim": 2,
}  # fmt: skip


def case_of(name: str) -> Case:
    return importlib.import_module(f"benchmarks.{name}.what").CASE


def told_of(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text())["told"])


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_report_is_that_of_the_committed_figures(name: str) -> None:
    case, told = case_of(name), told_of(name)
    table = report(case, told, rows_of(case, told)).partition("Opened in")[2]
    assert (RESULTS / f"{name}.md").read_text().partition("Opened in")[2] == table  # elsewhere
    assert set(told["streamed"]) == set(case.lists)


def test_a_14b_keeps_its_targets() -> None:
    told = told_of("disk_14b")
    assert misses(told, rows_of(case_of("disk_14b"), told)) == []


@pytest.mark.parametrize("name", NAMES)
def test_each_missed_target_is_a_sentence(name: str) -> None:
    case, told = case_of(name), told_of(name)
    told["opening"] = 10.5
    for one, judged in zip(told["rows"][1]["rounds"], rows_of(case, told)[1].rounds, strict=True):
        one["forward"] = judged.bound * 1.2
    missed = misses(told, rows_of(case, told))
    assert any("1.200 x its bound" in sentence and "frames" in sentence for sentence in missed)
    assert "opening took 10.5 s" in missed[-1]


def test_the_bound_of_a_round_is_the_larger_of_its_own_read_and_compute() -> None:
    assert Round(forward=11.0, compute=5.0, read=10.0).over_bound == 1.1
    told: dict[str, Any] = {"streamed": {"a": 2, "b": 3}, "rows": []}
    rounds = [
        {"forward": 12.0, "blocks": {"a": [1.0, 9.0, 2.0], "b": [1.0]}, "reads": {"1": 10, "4": 8}},
        {"forward": 12.0, "blocks": {"a": [1.0], "b": [1.0]}, "reads": {"1": 4, "4": 3}},
    ]
    told["rows"] = [{"rounds": rounds}]
    (row,) = rows_of(replace(H3, clips=H3.clips[:1]), told)
    assert [(one.compute, one.read) for one in row.rounds] == [(7.0, 8), (5.0, 3)]
    assert row.spread("over_bound") == (1.5, 2.4)


def test_a_disk_without_room_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(bounded_memory.shutil, "disk_usage", lambda _: usage(0, 0, 1 << 30))
    with pytest.raises(SystemExit, match=r"has 1.0 GiB free and 27.9 GiB are needed: make room"):
        with run.checkpoint(case_of("disk_14b"), tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_small_model_is_measured_round_by_round(tmp_path: Path) -> None:
    """The child itself, on MiniMax-H3's class with little in it."""
    from diffusers import MiniMaxH3Transformer3DModel

    torch.manual_seed(0)
    MiniMaxH3Transformer3DModel(**SMALL).to(torch.bfloat16).save_pretrained(tmp_path)
    group = SimpleNamespace(
        peak_bytes=1, by_kind={"anonymous": 1, "shared": 0, "page_cache": 0}, times_at_limit=0
    )
    case = replace(H3, clips=H3.clips[:1])
    told = json.loads(json.dumps(measure(case, tmp_path / H3.file, group, 2)))  # type: ignore[arg-type]
    assert told["streamed"] == {"token_refiner.refiner_blocks": 2, "transformer_blocks": 2}
    rounds = [one for row in told["rows"] for one in row["rounds"]]
    orders = [[int(count) for count in one["reads"]] for one in rounds]
    assert orders == [[*READERS], [*READERS[::-1]]]
    assert all(set(one["blocks"]) == set(H3.lists) for one in rounds)
    assert H3.title in report(case, told, rows_of(case, told))


def test_the_inputs_are_one_packed_sequence() -> None:
    from diffusers import MiniMaxH3Transformer3DModel

    model = MiniMaxH3Transformer3DModel(**SMALL).to(torch.bfloat16).eval()
    assert MODEL.family.class_name == type(model).__name__
    for clip in H3.clips:
        given = inputs_for(model, clip)
        rows = torch.cat([given[f"{kind}_indices"] for kind in ("text", "audio", "video")])
        assert rows.tolist() == list(range(len(given["token_tags"])))
        with torch.inference_mode():
            frames, sound = model(**given)
        assert frames.shape == given["hidden_states"].shape
        assert sound.shape == given["audio_hidden_states"].shape


@pytest.mark.parametrize("name", ["disk_14b", "disk_h3", "encoder_umt5", "whole_video"])
def test_an_option_is_no_folder(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit) as ended:
        folder_of(f"benchmarks.{name}", ["--help"])
    assert ended.value.code == 0
    assert f"python -m benchmarks.{name}" in capsys.readouterr().out
    assert folder_of(f"benchmarks.{name}", []) is None
    assert folder_of(f"benchmarks.{name}", ["large"]) == Path("large")
