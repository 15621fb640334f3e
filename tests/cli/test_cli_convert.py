"""`blockswap convert`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from blockswap import convert as room
from blockswap.cli.app import app
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import WanGeometry
from blockswap.layout.prefix import is_padding
from blockswap.synth import synth

runner = CliRunner()
TINY = WanGeometry(dim=128, ffn_dim=96, num_layers=2, num_heads=1, text_dim=32, freq_dim=32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return synth(TINY, tmp_path / "source.safetensors", dtype="float32").path


def run(*arguments: object) -> tuple[int, str, str]:
    result = runner.invoke(app, ["convert", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_a_file_is_converted_and_verified(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "t.safetensors"
    code, out, _ = run(source, target, "--dtype", "bf16")
    assert code == 0
    assert f"wrote {target}" in out
    assert {t.dtype for t in open_checkpoint(target).tensors.values()} == {"bfloat16", "float32"}
    code, out, _ = run(source, target, "--verify")
    assert code == 0
    assert "equal to a cast" in out
    data = bytearray(target.read_bytes())
    data[-1] ^= 1
    target.write_bytes(data)
    code, out, _ = run(source, target, "--verify")
    assert code == 1
    assert "differs from a cast" in out


def test_options_reach_the_file(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "t.safetensors"
    assert run(source, target, "--dtype", "FP16", "--dtype-all", "--no-padding")[0] == 0
    checkpoint = open_checkpoint(target)
    assert {t.dtype for t in checkpoint.tensors.values()} == {"float16"}
    assert not any(is_padding(name) for name in checkpoint.left_out)
    assert run(source, target)[0] == 2
    assert run(source, target, "--force")[0] == 0
    assert any(is_padding(name) for name in open_checkpoint(target).left_out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dtype", "fp8"], "--dtype='fp8' is not known"),
        (["--dtype-all"], "give --dtype, too"),
        (["--verify", "--force"], "--verify writes nothing"),
    ],
)
def test_mistakes_are_one_line(
    source: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    code, _, err = run(source, tmp_path / "t.safetensors", *options)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "t.safetensors").exists()


def test_ctrl_c_says_how_to_go_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room, "convert", interrupted)
        code, _, err = run(source, tmp_path / "t.safetensors")
    assert code == 130
    assert "the same command goes on" in err
