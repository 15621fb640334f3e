"""`inspect` and `plan` say what a folder of diffusers or transformers is, and what would stream."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY, build
from typer.testing import CliRunner

from blockswap import open_transformer
from blockswap.cli.app import app
from blockswap.errors import OtherModelError
from blockswap.predict.subject import PublishedSubject, Wish
from blockswap.published import FAMILIES

runner = CliRunner()
NAMES = ("FluxTransformer2DModel", "LTXVideoTransformer3DModel", "SkyReelsV2Transformer3DModel")
CARD = ("--gpu", "RTX 4060")


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test of this process may have brought the simulated one."""
    for place in ("stream.device", "probe.measure", "swap.entry.other_model"):
        monkeypatch.setattr(f"blockswap.{place}.best_device", lambda: torch.device("cpu"))


def said(*options: Any) -> str:
    result = runner.invoke(app, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    return result.stdout


def told(*options: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said(*options, "--json"))
    return found


def saved(name: str, folder: Path) -> Path:
    build(name).save_pretrained(folder)
    return folder


def encoder(folder: Path) -> Path:
    from transformers import T5Config, T5EncoderModel

    shape = dict(d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4, vocab_size=5000)
    T5EncoderModel(T5Config(**shape, feed_forward_proj="gated-gelu")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_told_by_its_class_and_lists(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    words, found = said("inspect", folder), told("inspect", folder)
    assert f"{name} of diffusers" in words
    assert "Wan" not in words
    assert found["class"] == name
    assert found["lists"] == TINY[name].units
    for path, count in TINY[name].units.items():
        assert f"{count} in {path}" in words
    parts = found["units"] + found["beside"]
    assert sum(part["nbytes"] for part in parts) == found["bytes"]
    assert sum(part["tensors"] for part in parts) == len(build(name).state_dict())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("asked", [("--blocks-to-swap", "2"), ("--blocks", "0-1"), ()])
def test_the_plan_is_that_of_the_door(name: str, asked: tuple[str, ...], tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    found = told("plan", "--model", folder, *asked)
    args = {asked[0][2:].replace("-", "_"): asked[1]} if asked else {}
    args = {key: int(value) if value.isdecimal() else value for key, value in args.items()}
    model: Any = open_transformer(folder, args, device="cpu")
    with model.blockswap as swap:
        assert found["plan"]["block_map"] == swap.plan.block_map()
        if name not in FAMILIES:  # a forecast counts in an accelerator's granules
            assert found["plan"]["device_bytes"] == swap.plan.device_bytes
        assert not asked or len(swap.plan.streamed) == 2


def test_a_budget_on_a_card_that_is_not_at_hand(tmp_path: Path) -> None:
    name = "LTXVideoTransformer3DModel"
    folder = saved(name, tmp_path)
    whole = told("plan", "--model", folder, *CARD)["plan"]
    assert set(whole["block_map"]) == {"R"}
    budget = whole["device_bytes"] - 1
    less = told("plan", "--model", folder, *CARD, "--vram", str(budget))["plan"]
    assert less["device_bytes"] <= budget
    assert set(less["block_map"]) & {"m", "d"}
    words = said("plan", "--model", folder, *CARD, "--vram", str(budget))
    for part in (f"{name} of diffusers", "RTX 4060", "streamed", "transformer_blocks"):
        assert part in words


def test_a_text_encoder_and_its_table(tmp_path: Path) -> None:
    folder = encoder(tmp_path)
    found = told("inspect", folder)
    assert (found["class"], found["library"]) == ("T5EncoderModel", "transformers")
    assert found["lists"] == {"encoder.block": 3}
    table = next(part for part in found["beside"] if part["name"] == "tables read by rows")
    assert table["nbytes"] == 5000 * 32 * 4
    planned = told("plan", "--model", folder, "--blocks-to-swap", "2")["plan"]
    assert planned["block_map"].count("d") + planned["block_map"].count("m") == 2


def test_a_pipeline_is_told_by_its_transformer(tmp_path: Path) -> None:
    saved("LTXVideoTransformer3DModel", tmp_path / "transformer")
    named = {"transformer": ["diffusers", "LTXVideoTransformer3DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(named))
    assert told("inspect", tmp_path)["class"] == "LTXVideoTransformer3DModel"


@pytest.mark.parametrize("name", ["LTXVideoTransformer3DModel", "FluxTransformer2DModel"])
def test_a_single_file_needs_its_config_and_is_told_so(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path / "folder")
    (stored,) = folder.glob("*.safetensors")
    path = tmp_path / "model.safetensors"
    save_file(load_file(stored), path)
    with pytest.raises(OtherModelError, match="give config=, the folder of its config"):
        open_transformer(path, device="cpu")
    for command in (("inspect", path), ("plan", "--model", path)):
        refused = runner.invoke(app, [str(word) for word in command])
        assert refused.exit_code == 2
        assert "give --config, the folder of its config.json" in refused.stderr
        assert refused.stderr.count("\n") == 1
    if name.startswith("LTX"):
        assert told("inspect", path, "--config", folder)["class"] == name
        planned = told("plan", "--model", path, "--config", folder, "--blocks-to-swap", "1")
        assert planned["plan"]["block_map"].count("d") == 1


@pytest.mark.parametrize(
    "option", [("--frames", "17"), ("--compare",), ("--png", "a.png"), ("--vae", "cpu")]
)
def test_what_needs_a_forecast_is_refused_without(option: tuple[str, ...], tmp_path: Path) -> None:
    folder = saved("LTXVideoTransformer3DModel", tmp_path)
    refused = runner.invoke(app, ["plan", "--model", str(folder), *option])
    assert refused.exit_code == 2
    assert "it is not known what a pipeline gives this model" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert "not known what a pipeline gives" in said("plan", "--model", folder, *CARD)


def test_a_known_class_is_forecast_from_its_folder(tmp_path: Path) -> None:
    """Its activations are those of its own configuration; parts beside it count where they are."""
    folder = saved("QwenImageTransformer2DModel", tmp_path / "transformer")
    asked = ("plan", "--model", folder, "--size", "64x96", "--text-encoder", "cpu", *CARD)
    found = told(*asked)
    config = {k: v for k, v in build("QwenImageTransformer2DModel").config.items() if k[0] != "_"}
    subject = PublishedSubject(FAMILIES["QwenImageTransformer2DModel"], config)
    clip = subject.clip(Wish((64, 96), dtype="float32"))
    cost = subject.forward(clip).activation_bytes + subject.carried_bytes(clip, "bfloat16")
    assert found["plan"]["activation_bytes"] == cost
    assert any("no VAE" in note for note in found["notes"])
    vae = {"_class_name": "AutoencoderKLQwenImage", "base_dim": 8, "z_dim": 16}
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps(vae))
    smaller = told(*asked)
    assert smaller["phases"][-1]["weight_bytes"] < found["phases"][-1]["weight_bytes"]
    assert not any("no VAE" in note for note in smaller["notes"])


def test_a_known_class_that_takes_other_inputs_is_planned_without_them(tmp_path: Path) -> None:
    folder = saved("QwenImageTransformer2DModel", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "axes_dims_rope": [4, 4, 4]}))
    words = said("plan", "--model", folder, *CARD)
    assert "cannot be followed" in words
    assert "only its weights are planned" in words
