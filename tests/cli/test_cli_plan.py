"""`blockswap plan`: what it prints, what it writes, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from blockswap.cli.app import app
from blockswap.demo.weights import weights_path

runner = CliRunner()
CLIP = ["--size", "832x480", "--frames", "17"]
CARD = ["--gpu", "RTX 4060"]


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test of this process may have brought the simulated one."""
    for place in ("stream.device", "probe.measure"):
        monkeypatch.setattr(f"blockswap.{place}.best_device", lambda: torch.device("cpu"))


def run(*options: str) -> str:
    result = runner.invoke(app, ["plan", "--model", "wan2.1-t2v-1.3b", *CLIP, *options])
    # 1: not all of the run fits, which is another file's matter.
    assert result.exit_code in {0, 1}, result.output
    return result.stdout


def test_a_plan_for_a_card() -> None:
    said = run(*CARD, "--vram", "2GiB")
    for words in ("RTX 4060", "denoising", "decoding", "blocks_to_swap", "a forward", "binding"):
        assert words in said


def test_json_holds_the_whole_plan() -> None:
    told = json.loads(run(*CARD, "--vram", "2GiB", "--json"))
    plan = told["plan"]
    assert plan["peak_bytes"] + told["margin_bytes"] <= 2 << 30
    assert plan["block_map"].count("m") == told["blocks_to_swap"]
    assert plan["timing"]["step_seconds"] >= plan["timing"]["compute_seconds"]
    assert [phase["name"] for phase in told["phases"]][-1] == "decoding"


def test_ram_and_disk_for_a_card() -> None:
    told = json.loads(run(*CARD, "--vram", "1.5GiB", "--ram", "1GiB", "--disk", "1GB", "--json"))
    tiers = {unit["tier"] for unit in told["plan"]["units"]}
    assert tiers == {"resident", "ram", "disk"}
    pinned = told["plan"]["pinned_bytes"]
    assert pinned + told["plan"]["staging_buffers"] * told["plan"]["staging_bytes"] <= 1 << 30


def test_lists_and_counts_are_taken_as_they_are() -> None:
    assert json.loads(run(*CARD, "--blocks-to-swap", "7", "--json"))["blocks_to_swap"] == 7
    listed = json.loads(run(*CARD, "--blocks", "0,2,3-5", "--json"))
    assert listed["plan"]["block_map"].count("m") == 5


def test_a_machine_that_was_not_probed_gets_bytes_and_no_seconds() -> None:
    said = run()
    assert "no seconds" in said
    assert "denoising" in said


def test_pictures(tmp_path: Path) -> None:
    from PIL import Image

    for number, options in enumerate(([], ["--compare"])):
        path = tmp_path / f"{number}.png"
        run(*CARD, "--vram", "2GiB", "--png", str(path), *options)
        assert Image.open(path).width == 1600


def test_a_comparison_in_words_and_as_json() -> None:
    assert "budget" in run(*CARD, "--compare")
    points = json.loads(run(*CARD, "--compare", "--json"))
    assert len(points) == 65
    assert points[-1]["streamed"] == 0


def test_a_model_with_a_timestep_for_every_token_is_foreseen_with_them() -> None:
    told = json.loads(run(*CARD, "--model", "wan2.2-ti2v-5b", "--size", "832x448", "--json"))
    assert told["workload"]["per_token_timestep"]
    assert not json.loads(run(*CARD, "--json"))["workload"]["per_token_timestep"]


def test_a_file_is_foreseen_in_its_own_dtype(tmp_path: Path) -> None:
    with safe_open(weights_path(), "pt") as file:
        held = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        save_file(held, tmp_path / "whole.safetensors", metadata=file.metadata())
    options = [*CARD, "--model", str(tmp_path / "whole.safetensors"), "--json"]
    own, cast = json.loads(run(*options)), json.loads(run(*options, "--dtype", "bfloat16"))
    assert (own["workload"]["dtype"], cast["workload"]["dtype"]) == ("float32", "bfloat16")
    assert own["plan"]["activation_bytes"] > cast["plan"]["activation_bytes"]


def test_the_host_is_foreseen_with_its_own_kernels() -> None:
    assert json.loads(run("--json"))["workload"]["kernels"] == "portable"
    assert json.loads(run(*CARD, "--json"))["workload"]["kernels"] == "cuda"


def test_a_budget_beyond_the_card_does_not_silence_warnings() -> None:
    assert "text encoding needs 10.8 GiB, there is 8.0 GiB" in run(*CARD, "--vram", "30GiB")


def test_a_budget_that_a_comparison_does_not_use_is_said() -> None:
    assert "--vram 2GiB is not used" in run(*CARD, "--vram", "2GiB", "--compare")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "big"], "is no size"),
        (["--size", "833x480"], "no multiple of"),
        (["--frames", "80"], "use 77 or 81"),
        (["--gpu", "RTX 9090"], "RTX 9090"),
        (["--vram", "lots"], "lots"),
        (["--dtype", "fp8"], "use one of bfloat16, float16, float32"),
        (["--gpu", "4060", "--disk", "0"], "reads nothing"),
        (["--disk", "1GB"], "give --gpu too"),
        (["--blocks", "3-1"], "Invalid range: '3-1'"),
        (["--vram", "20MiB", "--model", str(weights_path())], "the largest clip that fits is"),
        (["--gpu", "4060", "--vram", "6MiB"], "needs at least"),
        (["--png", "out.png"], "there is no timeline without seconds"),
        (["--png", "out.png", "--compare"], "there is no curve without seconds"),
    ],
)
def test_mistakes_are_one_sentence(options: list[str], words: str) -> None:
    result = runner.invoke(app, ["plan", "--model", "wan2.1-t2v-1.3b", *CLIP, *options])
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_loras_are_counted_with_their_blocks(tmp_path: Path) -> None:
    """Their factors move with each block, and merging takes a decode buffer."""
    layers = [f"diffusion_model.blocks.{n}.self_attn.q" for n in range(30)]
    halves = {"lora_A": (32, 1536), "lora_B": (1536, 32)}
    path = tmp_path / "a.safetensors"
    save_file(
        {
            f"{layer}.{half}.weight": torch.zeros(shape, dtype=torch.bfloat16)
            for layer in layers
            for half, shape in halves.items()
        },
        path,
    )
    options = ["--blocks-to-swap", "30", *CARD, "--json"]
    plain = json.loads(run(*options))["plan"]
    both = json.loads(run(*options, "--lora", f"{path}:0.5", "--lora", str(path)))["plan"]
    factors = 30 * 2 * 2 * 32 * 1536 * 2
    assert both["copied_bytes_per_forward"] - plain["copied_bytes_per_forward"] == factors
    # The merged weight in bfloat16; in fp32 the sum and an addition, and the factors.
    weight, wide = 1536 * 1536 * 2, 1536 * 1536 * 4
    assert both["decode_bytes"] == weight + 2 * wide + 2 * 32 * 1536 * 4
    assert any("2 LoRAs are merged" in said for said in both["sentences"])
    result = runner.invoke(app, ["plan", "--model", "wan2.2-ti2v-5b", "--lora", str(path)])
    assert result.exit_code == 2
    assert "another size" in " ".join(result.output.split())
    with_image = load_file(path) | {
        "diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight": torch.zeros(32, 1536),
        "diffusion_model.blocks.0.cross_attn.k_img.lora_B.weight": torch.zeros(1536, 32),
    }
    save_file(with_image, path)
    model = ["--model", "wan2.1-t2v-1.3b"]
    result = runner.invoke(app, ["plan", *model, *options, "--lora", str(path)])
    assert result.exit_code == 2
    assert "--lora-partial" in " ".join(result.output.split())
    partly = json.loads(run(*options, "--lora", str(path), "--lora-partial"))["plan"]
    moved = partly["copied_bytes_per_forward"] - plain["copied_bytes_per_forward"]
    assert moved == factors // 2
    assert any("2 of 62 tensors of the LoRA a.safetensors are" in s for s in partly["sentences"])
