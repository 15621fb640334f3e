"""The command as a whole: help, version, exit codes, and how a refusal looks."""

import builtins
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import blockswap.cli
from blockswap.cli import app as app_module
from blockswap.cli.app import Commands, app
from blockswap.cli.console import new_console, print_error
from blockswap.errors import ArgsError

runner = CliRunner()


def failing(error: BaseException) -> typer.Typer:
    """The same kind of app as `blockswap`, with one command that raises."""
    made = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @made.command()
    def boom() -> None:
        raise error

    made.callback()(lambda: None)
    return made


@pytest.mark.parametrize("command", [[], ["convert"], ["demo"], ["inspect"], ["probe"], ["synth"]])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help(command: list[str], flag: str) -> None:
    result = runner.invoke(app, [*command, flag])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_no_arguments_show_the_commands() -> None:
    result = runner.invoke(app, [])
    assert all(name in result.output for name in ("convert", "demo", "inspect", "probe", "synth"))


def test_version_names_the_installed_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "version", lambda name: "1.2.3")
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output == "blockswap 1.2.3\n"


def test_version_says_so_when_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise app_module.PackageNotFoundError(name)

    monkeypatch.setattr(app_module, "version", missing)
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert "without being installed" in result.output


def test_a_refusal_is_one_line_on_stderr_and_exit_code_2() -> None:
    result = runner.invoke(failing(ArgsError("Invalid range: '3-1'\nin two lines")), ["boom"])
    assert result.exit_code == 2
    assert result.stderr == "error: Invalid range: '3-1' in two lines\n"
    assert result.stdout == ""


@pytest.mark.parametrize("message", ["[0, 3] [bold]x[/bold]", ":smile: [/]", "a" * 500])
def test_messages_are_printed_as_they_are(message: str) -> None:
    result = runner.invoke(failing(ArgsError(message)), ["boom"])
    assert result.stderr == f"error: {message}\n"


def test_ctrl_c_is_one_line_and_exit_code_130() -> None:
    result = runner.invoke(failing(KeyboardInterrupt()), ["boom"])
    assert result.exit_code == 130
    assert result.stderr == "error: interrupted before it was done\n"


def test_an_unexpected_error_keeps_its_traceback() -> None:
    result = runner.invoke(failing(ZeroDivisionError("ours")), ["boom"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_unknown_option_is_a_usage_error() -> None:
    result = runner.invoke(app, ["inspect", "--nonsense"])
    assert result.exit_code == 2
    assert "--nonsense" in result.stderr


def test_errors_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("something")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: something\n"


@pytest.mark.parametrize(("terminal", "width"), [("1", 80), ("0", 120)])
def test_a_table_is_as_wide_as_the_terminal_and_wider_in_a_file(
    terminal: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", terminal)
    assert new_console().width == width


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_is_one_sentence(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_import = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "app" and args[-1] == 1:  # `from .app import app`
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SystemExit) as caught:
        blockswap.cli.main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"needs {missing}" in error
    assert 'pip install "wanvideo-blockswap[cli]"' in error


def test_another_missing_module_is_not_blamed_on_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "app" and args[-1] == 1:  # `from .app import app`
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match="torch"):
        blockswap.cli.main()


def test_main_leaves_with_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["blockswap", "inspect", "/nowhere/x.safetensors"])
    with pytest.raises(SystemExit) as caught:
        blockswap.cli.main()
    assert caught.value.code == 2


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from blockswap.cli.app import app; "
        "CliRunner().invoke(app, ['--help']); "
        "heavy = {'torch', 'numpy', 'diffusers', 'av', 'PIL'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    source = Path(blockswap.cli.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
