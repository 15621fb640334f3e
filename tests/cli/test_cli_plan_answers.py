"""What `blockswap plan` answers for the whole machine: dtypes, the models beside, the verdict."""

import json
import math
import struct
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blockswap.cli.app import app
from blockswap.layout.geometry import file_names, find_variant

runner = CliRunner()
CLIP = ["--size", "256x256", "--frames", "5"]
SAFETENSORS = {"F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}


def header_only(path: Path, dtype: str) -> str:
    """A checkpoint whose weights are a hole."""
    head, end = {}, 0
    for name, shape in file_names(find_variant("wan2.1-t2v-1.3b")).items():
        nbytes = SAFETENSORS[dtype][1] * math.prod(shape)
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    raw = json.dumps(head).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return str(path)


@pytest.mark.parametrize("stored", SAFETENSORS)
@pytest.mark.parametrize("asked", [None, "bfloat16", "float16", "float32"])
def test_it_says_in_which_dtype_it_computes(tmp_path: Path, stored: str, asked: str | None) -> None:
    model, held = header_only(tmp_path / "wan.safetensors", stored), SAFETENSORS[stored][0]
    options = ["--model", model, *CLIP, "--gpu", "RTX 4090"]
    said = runner.invoke(app, ["plan", *options, *(["--dtype", asked] if asked else [])]).stdout
    line = next(line for line in said.splitlines() if "computes in" in line)
    computed = asked or held
    assert line.split("computes in")[1].split()[0].strip(",;") == computed
    assert ("--dtype bfloat16 takes half" in line) is (computed == held == "float32")
    assert (f"the file holds {held}" in line) is (computed != held)


@pytest.mark.parametrize("option", ["--text-encoder", "--vae"])
def test_an_unknown_dtype_of_a_companion_is_one_sentence(option: str) -> None:
    result = runner.invoke(app, ["plan", "--model", "wan2.1-t2v-1.3b", *CLIP, option, "int3"])
    assert result.exit_code == 2
    assert f"{option} 'int3' is unknown: use one of" in result.stderr


def test_what_runs_on_the_cpu_has_no_phase_on_the_card() -> None:
    options = ["--text-encoder", "cpu", "--vae", "cpu", "--gpu", "RTX 4060", "--json"]
    result = runner.invoke(app, ["plan", "--model", "wan2.1-t2v-1.3b", *CLIP, *options])
    assert [phase["name"] for phase in json.loads(result.stdout)["phases"]] == ["denoising"]


CASES = [
    (["--gpu", "RTX 4060"], "text encoding"),
    (["--gpu", "RTX 4060", "--text-encoder", "cpu"], None),
    (["--gpu", "RTX 4060", "--text-encoder", "float8"], None),
    (["--gpu", "RTX 4090"], None),
    (["--gpu", "RTX 4090", "--vram", "2GiB", "--text-encoder", "cpu"], None),
    (["--gpu", "RTX 4090", "--vram", "2GiB"], "text encoding"),
    (["--gpu", "RTX 4090", "--vram", "700MiB", "--text-encoder", "cpu"], "decoding"),
    (["--gpu", "RTX 4090", "--host-memory", "8GiB"], "host memory"),
    (["--gpu", "RTX 4090", "--host-memory", "64GiB"], None),
]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("options", "binds"), CASES)
def test_exit_code_and_first_line_are_one_verdict(
    options: list[str], binds: str | None, as_json: bool
) -> None:
    asked = ["plan", "--model", "wan2.1-t2v-1.3b", *CLIP, *options]
    result = runner.invoke(app, [*asked, *(["--json"] if as_json else [])])
    told = json.loads(result.stdout) if as_json else {}
    first = told.get("verdict", result.stdout.splitlines()[0])
    assert result.exit_code == (0 if binds is None else 1), result.output
    assert first.startswith("fits: " if binds is None else "does not fit: ")
    assert (binds or "needs most") in first
    if as_json:
        assert told["fits"] is (binds is None)
        assert sum(told["host"].values()) == 2 * told["host"]["total"]


def test_both_experts_are_counted_in_host_memory() -> None:
    totals = {}
    for model in ("wan2.1-t2v-14b", "wan2.2-t2v-a14b"):
        options = ["--model", model, *CLIP, "--gpu", "RTX 4090", "--json"]
        told = json.loads(runner.invoke(app, ["plan", *options]).stdout)
        totals[model] = told["host"]["total"]
        assert totals[model] > told["plan"]["pinned_bytes"] + told["phases"][0]["weight_bytes"]
    one, two = totals.values()
    assert 26 << 30 < two - one < 28 << 30


NUMBERS = ["--gpu-memory", "12GiB", "--gpu-tflops", "40", "--link", "pcie3x8"]


def test_a_card_in_numbers() -> None:
    result = runner.invoke(app, ["plan", "--model", "wan2.1-t2v-1.3b", *CLIP, *NUMBERS, "--json"])
    machine = json.loads(result.stdout)["machine"]
    assert result.exit_code == 0, result.output
    assert machine["device_bytes"] == 12 << 30
    assert machine["pinned_link"] == pytest.approx(0.985e9 * 8 * 0.8)
    assert machine["flops"] == {"bfloat16": 24e12, "float16": 24e12}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (NUMBERS[:2], "give --gpu-tflops too"),
        (NUMBERS[2:4], "give --gpu-memory too"),
        (NUMBERS[4:], "give --gpu-memory and --gpu-tflops too"),
        ([*NUMBERS, "--link", "pcie9x8"], "is no link"),
        ([*NUMBERS, "--link", "pcie3x5"], "is no link"),
        ([*NUMBERS, "--link", "usb"], "is no link"),
        ([*NUMBERS, "--gpu-tflops", "nan"], "is no rate"),
        ([*NUMBERS, "--gpu-tflops", "-1"], "is no rate"),
        ([*NUMBERS, "--gpu-tflops", "fast"], "is no rate"),
        ([*NUMBERS, "--gpu-memory", "0"], "is no memory"),
        ([*NUMBERS, "--gpu-memory", "lots"], "is no size"),
        (["--host-memory", "8GiB"], "give --gpu too"),
    ],
)
def test_a_wrong_number_is_one_sentence(options: list[str], words: str) -> None:
    result = runner.invoke(app, ["plan", "--model", "wan2.1-t2v-1.3b", *CLIP, *options])
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_turing_is_planned_in_fp16() -> None:
    options = ["--model", "wan2.1-t2v-1.3b", *CLIP, "--gpu", "T4", "--json"]
    told = json.loads(runner.invoke(app, ["plan", *options]).stdout)
    assert told["workload"]["dtype"] == "float16"
    assert told["plan"]["timing"]["step_seconds"] > 0
