"""What surrounds a command and fails it: each is one sentence on stderr and an exit code."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import blockswap.cli
from blockswap.cli.app import app
from blockswap.cli.surroundings import one_sentence
from blockswap.demo.weights import weights_path

SOURCE = str(Path(blockswap.cli.__file__).parents[2])
COMMANDS = {
    "convert": ["convert", "{weights}", "{out}"],
    "demo": ["demo", "--out", "{folder}", "--steps", "1"],
    "inspect": ["inspect", "{weights}"],
    "plan": ["plan", "--help"],
    "probe": ["probe", "--help"],
    "synth": ["synth", "--list"],
    "help": ["--help"],
    "version": ["--version"],
}
# A command without a module: an import of it fails as where it was never installed.
WITHOUT = (
    "import sys; missing = sys.argv.pop(1); sys.modules[missing] = None; "
    "from blockswap.cli import main; main()"
)


def run(command: list[str], *python: str, **how: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE, **how.pop("env", {})}
    return subprocess.run(
        [sys.executable, *(python or ("-m", "blockswap")), *command],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how},
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )


def filled(name: str, folder: Path) -> list[str]:
    known = {"weights": weights_path(), "out": folder / "out.safetensors", "folder": folder}
    return [part.format(**known) for part in COMMANDS[name]]


def assert_one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("name", [n for n in COMMANDS if n != "demo"])
def test_an_output_that_is_full(name: str, tmp_path: Path) -> None:
    with open("/dev/full", "w", encoding="ascii") as full:
        assert_one_sentence(run(filled(name, tmp_path), stdout=full), "cannot be written")


@pytest.mark.parametrize("name", [n for n in COMMANDS if n != "demo"])
def test_an_output_in_ascii(name: str, tmp_path: Path) -> None:
    done = run(filled(name, tmp_path), env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "Traceback" not in done.stderr
    if name == "inspect":
        odd = run(["inspect", "/nowhere/\N{SNOWMAN}\udcff"], env={"PYTHONIOENCODING": "ascii"})
        assert_one_sentence(odd, "/nowhere/\\u2603\\udcff")


@pytest.mark.parametrize("missing", ["torch", "diffusers"])
def test_the_demo_without_a_module(missing: str, tmp_path: Path) -> None:
    done = run([missing, *filled("demo", tmp_path)], "-c", WITHOUT)
    assert_one_sentence(done, f"needs {missing}, which", "pip install")


def test_an_address_space_limit(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (300 * 2**20, 300 * 2**20))

    done = run(filled("demo", tmp_path), preexec_fn=limited, env={"OMP_NUM_THREADS": "1"})
    assert_one_sentence(done, "not enough memory")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ModuleNotFoundError("No module named 'PIL.Image'", name="PIL.Image"),
            "pip install pillow",
        ),
        (MemoryError(), "not enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "not enough memory",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be written"),
    ],
)
def test_each_kind_is_one_sentence_and_code_2(
    error: BaseException, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for raised in (error, RuntimeError("around it")):
        with pytest.raises(SystemExit) as caught, one_sentence():
            if raised is error:
                raise error
            raise raised from error
        assert caught.value.code == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert told.count("\n") == 1
        assert words in told


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("ours"),
        ModuleNotFoundError("No module named 'blockswap.gone'", name="blockswap.gone"),
        RuntimeError("another"),
        OSError(errno.ENOSPC, "No space left on device", "a file of ours"),
    ],
)
def test_a_bug_of_ours_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)), one_sentence():
        raise error


@pytest.mark.parametrize("seed", [10**22, -(10**22), 2**64, -(2**63) - 1])
def test_a_seed_beyond_64_bits_is_refused_by_the_demo(seed: int, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--seed", str(seed)])
    assert result.exit_code == 2
    assert f"seed={seed} has more than 64 bits" in result.stderr


@pytest.mark.parametrize("flag", ["--overwrite", "--force"])
def test_convert_and_synth_take_either_name_and_say_one(flag: str, tmp_path: Path) -> None:
    out = tmp_path / "there.safetensors"
    convert = ["convert", str(weights_path()), str(out)]
    for command in (convert, ["synth", "wan2.1-t2v-1.3b", str(out)]):
        out.write_bytes(b"there")
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        assert "--overwrite" in result.stderr
        assert out.read_bytes() == b"there"
    assert CliRunner().invoke(app, [*convert, flag]).exit_code == 0
    assert CliRunner().invoke(app, ["synth", "--list", flag]).exit_code == 0
