"""`blockswap synth`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from blockswap.cli.app import app
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import VARIANTS, WanGeometry, infer_geometry, variants

runner = CliRunner()

TINY = WanGeometry(dim=128, ffn_dim=96, num_layers=2, num_heads=1, text_dim=32, freq_dim=32)


@pytest.fixture(autouse=True)
def tiny_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant that takes no time to write."""
    monkeypatch.setattr(variants, "VARIANTS", {**VARIANTS, "tiny": TINY})


def test_the_list_has_every_variant_and_its_size() -> None:
    result = runner.invoke(app, ["synth", "--list"])
    assert result.exit_code == 0
    assert all(name in result.stdout for name in VARIANTS)
    assert "26.6 GiB" in result.stdout


def test_a_file_is_written_and_can_be_read_back(tmp_path: Path) -> None:
    out = tmp_path / "tiny.safetensors"
    result = runner.invoke(app, ["synth", "tiny", str(out), "--mixed", "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert f"wrote {out}" in result.stdout
    checkpoint = open_checkpoint(out)
    assert infer_geometry(checkpoint) == TINY
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"bfloat16", "float32"}


@pytest.mark.parametrize(
    ("word", "dtype"),
    [("bf16", "bfloat16"), ("FP16", "float16"), ("fp32", "float32"), ("fp8", "float8_e4m3fn")],
)
def test_dtypes_have_short_names(tmp_path: Path, word: str, dtype: str) -> None:
    out = tmp_path / "tiny.safetensors"
    assert runner.invoke(app, ["synth", "tiny", str(out), "--dtype", word]).exit_code == 0
    assert {tensor.dtype for tensor in open_checkpoint(out).tensors.values()} == {dtype}


def test_shards_and_diffusers_names(tmp_path: Path) -> None:
    out = tmp_path / "folder"
    options = ["--shards", "100kB", "--naming", "diffusers"]
    result = runner.invoke(app, ["synth", "tiny", str(out), *options])
    assert result.exit_code == 0, result.output
    checkpoint = open_checkpoint(out)
    assert len(checkpoint.paths) > 1
    assert "condition_embedder.text_embedder.linear_1.weight" in checkpoint.tensors


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = str(tmp_path / f"{name}.safetensors")
        assert runner.invoke(app, ["synth", "tiny", out, "--seed", seed]).exit_code == 0
    a, b, c = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_what_is_there_is_only_replaced_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "tiny.safetensors"
    out.write_bytes(b"precious")
    refused = runner.invoke(app, ["synth", "tiny", str(out)])
    assert refused.exit_code == 2
    assert out.read_bytes() == b"precious"
    assert runner.invoke(app, ["synth", "tiny", str(out), "--overwrite"]).exit_code == 0
    assert open_checkpoint(out).nbytes > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "VARIANT and OUT are both needed"),
        (["tiny"], "VARIANT and OUT are both needed"),
        (["wan9", "x.safetensors"], "Unknown variant: 'wan9'"),
        (["tiny", "x.safetensors", "--dtype", "int4"], "--dtype='int4' is not known: use one of"),
        (["tiny", "x.safetensors", "--naming", "mine"], "--naming='mine' is not known"),
        (["tiny", "x", "--shards", "many"], "--shards='many' is no size"),
        (["tiny", "nowhere/x.safetensors"], "is not there"),
    ],
)
def test_mistakes_are_refused_in_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["synth", *arguments])
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blockswap.synth import write

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "_write_file", interrupted)
    result = runner.invoke(app, ["synth", "tiny", str(tmp_path / "tiny.safetensors")])
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []
