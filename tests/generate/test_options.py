"""Every option of `generate` with every kind of model: used, refused, or said to do nothing."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from single_files import lora
from tiny_pipelines import tokenizer
from typer.main import get_command
from typer.testing import CliRunner
from whole import draw_image, draw_video

from blockswap.cli.app import app
from blockswap.generate import run

KINDS = ("tiny", "t2v", "i2v", "flf", "vace", "two-experts", "ti2v", "files")
FROM_IMAGES = ("i2v", "flf")
CLIP = ["--size", "64x64", "--frames", "9", "--steps", "4", "--seed", "3", "--guidance", "3"]
_NO_PARTS = "beside tiny, which is whole"
# What becomes of an option, by kind: "used", or words of what is said or refused ("!" before).
TABLE: dict[str, dict[str, str]] = {
    "--prompt blue cat": {"": "used"},
    "--prompts PROMPTS": {"": "!one of --prompt and --prompts"},
    "--negative blurry": {"": "used"},
    "--negative blurry --guidance 1": {"": "the negative prompt is not read"},
    "--image IMAGE": {
        "": "!makes videos of text alone",
        "tiny": "!makes clips of three words alone",
        "i2v": "used", "flf": "used", "vace": "used", "ti2v": "used",
    },
    "--last-image IMAGE": {
        "": "!none to start from: give both",
        "i2v": "used", "flf": "used",
    },
    "--image IMAGE --last-image IMAGE": {
        "": "!makes videos of text alone",
        "tiny": "!makes clips of three words alone",
        "i2v": "used", "flf": "used",
        "vace": "!this model reads none: leave --last-image",
        "ti2v": "!this model reads none: leave --last-image",
    },
    "--video VIDEO": {
        "": "used",
        "tiny": "!makes clips of three words alone",
        "i2v": "!an image and a video were given",
        "flf": "!an image and a video were given",
        "two-experts": "!this model takes none",
        "files": "!this model takes none",
    },
    "--video VIDEO --image IMAGE": {
        "": "!an image and a video were given",
        "tiny": "!makes clips of three words alone",
        "vace": "used",
    },
    "--video LONG": {"vace": "its first 9 frames are followed", "t2v": "its first 9 frames are"},
    "--lora NOBODYS": {"": "!a model of another size", "files": "used"},
    "--lora OWN": {"files": "used"},
    "--lora OWN:0": {"files": "changes nothing at a strength of 0"},
    "--lora-partial": {"": "!without a LoRA"},
    "--lora-partial --lora OWN": {"files": "used"},
    "--lora-high OWN": {"": "!this model has one transformer", "two-experts": "!", "files": "used"},
    "--lora-low OWN": {"": "!this model has one transformer", "two-experts": "!", "files": "used"},
    "--module NONE": {"": "!it is not there", "tiny": f"!{_NO_PARTS}"},
    "--high-noise NONE": {"": "!give both", "tiny": f"!{_NO_PARTS}"},
    "--low-noise NONE": {"": "!give both", "tiny": f"!{_NO_PARTS}"},
    "--high-noise OWN-HIGH --low-noise OWN-LOW": {"two-experts": "used"},
    "--tokenizer WORDS": {
        "": "is used, and not that in", "tiny": f"!{_NO_PARTS}", "files": "used",
    },
    "--vram 8GiB": {"": "nothing is limited by it"},
    "--ram 16GiB": {"": "used"},
    "--size 32x64": {"": "used"},
    "--size 480p": {"": "!is no size"},
    "--frames 5": {"": "used"},
    "--steps 3": {"": "used"},
    "--guidance 2": {"": "used"},
    "--shift 7": {"": "used", "tiny": f"!{_NO_PARTS}"},
    "--chunk-tokens 8": {"": "!too few for the kernels"},
    "--chunk-tokens 64 --size 128x128": {"": "used"},
    "--chunk-tokens 4096": {"": "and blocks run whole", "tiny": "used"},
    "--seed 4": {"": "used"},
    "--tiled": {"": "tiles change nothing: 64x64 is no larger than one",
                "tiny": "what decodes this model's clips has none"},
    "--whole": {"": "used"},
    "--preview 2": {"": "used"},
    "--preview 4": {"": "a picture every 4 steps shows nothing early"},
    "--output OTHER": {"": "used"},
    "--resume": {"": "used"},
    "--device cpu": {"": "used"},
    "--device nowhere": {"": "!nowhere"},
    "--dry-run": {"": "used"},
    "--model NONE": {"": "!it is not there"},
}  # fmt: skip
# What an option does beside the plan and what a clip depends on.
_ELSEWHERE = ("--resume", "--device cpu", "--dry-run", "--whole", "--ram 16GiB")
# CI runs what is refused or said somewhere, once; `make every-video` the whole table.
EVERYWHERE = bool(os.environ.get("BLOCKSWAP_EVERY_POINT"))


def rows() -> list[tuple[str, str, str]]:
    found = []
    for option, by_kind in TABLE.items():
        known = [kind for kind in KINDS if kind in by_kind or "" in by_kind]
        chosen = known if EVERYWHERE else _one_of_each(by_kind, known)
        found += [(option, kind, by_kind.get(kind, by_kind.get("", ""))) for kind in chosen]
    return found


def _one_of_each(by_kind: dict[str, str], known: list[str]) -> list[str]:
    """A kind for each outcome but the plain one, which has tests of its own."""
    outcomes = {by_kind.get(kind, by_kind.get("", "")): kind for kind in reversed(known)}
    return [kind for outcome, kind in outcomes.items() if outcome != "used"]


def test_the_table_has_every_option() -> None:
    command = get_command(app).commands["generate"]  # type: ignore[attr-defined]
    there = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    told = set(re.findall(r"--[a-z-]+", " ".join(TABLE)))
    assert told == {name for name in there - {"--help"} if not name.startswith("--no-")}


@pytest.fixture
def given(folders: Callable[[str], Path], tmp_path: Path) -> Callable[[str, str], list[str]]:
    """The command line for a kind of model with an option more."""
    words = tmp_path / "words"
    tokenizer().save_pretrained(words)
    (tmp_path / "prompts.txt").write_text("a red ball\n")
    nobodys = lora(tmp_path / "nobodys.safetensors", 1)

    def line(kind: str, option: str) -> list[str]:
        own = nobodys
        if kind == "files":
            own = lora(folders("files") / "lora_high.safetensors", 1)
        experts = folders("two-experts") if "OWN-HIGH" in option else tmp_path
        places = {
            "IMAGE": draw_image(tmp_path / "i.png"),
            "VIDEO": draw_video(tmp_path / "v.mp4"),
            "LONG": _long(tmp_path / "l.mp4") if "LONG" in option else "",
            "PROMPTS": tmp_path / "prompts.txt",
            "WORDS": words,
            "NOBODYS": nobodys,
            "OWN-HIGH": experts / "transformer_2",
            "OWN-LOW": experts / "transformer",
            "OWN": own,
            "NONE": tmp_path / "none",
            "OTHER": tmp_path / "other.mp4",
        }
        more = [
            re.sub(r"[A-Z][A-Z-]+", lambda m: str(places.get(m[0], m[0])), word)
            for word in option.split()
        ]
        model = "tiny" if kind == "tiny" else str(folders(kind))
        line = ["generate", "--model", model, "--output", str(tmp_path / "o.mp4"), *CLIP]
        line += ["--prompt", "red ball"] if "--prompt " not in option else []
        # A process that knows the simulated accelerator would take that.
        line += ["--device", "cpu"] if "--device " not in option else []
        if "--prompt " in option:
            more = ["--prompt", "blue square up" if kind == "tiny" else "blue cat"]
        for name, needed in (("--image", FROM_IMAGES), ("--last-image", ("flf",))):
            if kind in needed and name not in option:
                line += [name, str(draw_image(tmp_path / "plain.png", seed=9))]
        return [*line, "--dry-run", *(w for w in more if w != "--dry-run")]

    return line


def _long(path: Path) -> Path:
    import numpy as np

    from blockswap.generate.video import write_video

    write_video(path, np.zeros((12, 64, 64, 3), dtype=np.uint8), width=64, height=64, fps=8)
    return path


def looked_at(line: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """What the command prints, and what the run would be: None where it was refused."""
    found: list[Any] = []
    real = run.prepare

    def prepare(*args: Any, **kwargs: Any) -> Any:
        job, plan = real(*args, **kwargs)
        kept = (job.asked(0), plan.args, job.outputs, job.request.preview_every)
        found.append(kept)
        return job, plan

    with monkeypatch.context() as patched:
        patched.setattr(run, "prepare", prepare)
        told = CliRunner().invoke(app, line)
    assert told.exit_code in (0, 1, 2), told.output
    return told.output + str(told.exception or ""), found[0] if found else None


@pytest.mark.parametrize(("option", "kind", "outcome"), rows())
def test_what_becomes_of_it(
    option: str,
    kind: str,
    outcome: str,
    given: Callable[[str, str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, job = looked_at(given(kind, option), monkeypatch)
    said = output.replace("\n", " ")
    if outcome.startswith("!"):
        assert job is None, said
        assert outcome[1:] in said
        return
    assert job is not None, said
    if outcome != "used":
        assert outcome in said
    elif option not in _ELSEWHERE:
        plain, before = looked_at(given(kind, "--seed 3"), monkeypatch)
        assert job != before, "it changes something"
        assert plain
