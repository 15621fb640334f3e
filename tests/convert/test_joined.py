"""A model's file and those of modules that go onto it become one file, as if it had always been."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made import bits, save
from safetensors.torch import load_file
from typer.testing import CliRunner

from blockswap.cli.app import app
from blockswap.convert import convert, verify_pair
from blockswap.errors import ArgsError, GeometryError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.formats import unpacked
from blockswap.layout.geometry import WanGeometry, file_names, infer_geometry, to_diffusers_key

WHOLE = WanGeometry(
    dim=256, ffn_dim=64, num_layers=4, num_heads=2, in_channels=4, out_channels=4, text_dim=24,
    vace_layers=(0, 2), vace_in_channels=6,
)  # fmt: skip
Tensors = Mapping[str, torch.Tensor]
SPELT: dict[str, Callable[[str], str]] = {
    "bare": str,
    "prefixed": "model.diffusion_model.{}".format,
    "diffusers": to_diffusers_key,
}


def weights() -> Tensors:
    draw = torch.Generator().manual_seed(1)
    shapes = file_names(WHOLE).items()
    return {key: torch.randn(shape, generator=draw).bfloat16() / 8 for key, shape in shapes}


def parts() -> tuple[Tensors, Tensors]:
    """What a model has, and what its module adds."""
    found = weights()
    added = {key: tensor for key, tensor in found.items() if key.startswith("vace")}
    return {key: tensor for key, tensor in found.items() if key not in added}, added


def spelt(tensors: Tensors, how: str) -> Tensors:
    return {SPELT[how](key): tensor for key, tensor in tensors.items()}


def scaled(tensors: Tensors, tail: str = "scale_weight") -> Tensors:
    """Matrices of blocks in fp8, a scale each."""
    made = {}
    for key, tensor in tensors.items():
        if "blocks." in key and key.endswith("weight") and tensor.dim() == 2:
            made[key] = (tensor.float() * 64).to(torch.float8_e4m3fn)
            made[key.replace("weight", tail)] = torch.tensor(1 / 64)
        else:
            made[key] = tensor
    return made


MARK = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}


def same(path: Path, expected: Tensors) -> bool:
    found, wanted = (
        {k: bits(t) for k, t in each.items() if "padding" not in k}
        for each in (load_file(path), expected)
    )
    return found == wanted


@pytest.mark.parametrize(
    ("base", "module"),
    [("bare", "bare"), ("prefixed", "diffusers"), ("diffusers", "bare"), ("bare", "prefixed")],
)
def test_one_file_in_the_models_names(tmp_path: Path, base: str, module: str) -> None:
    own, added = parts()
    files = [
        save(tmp_path / "base.safetensors", spelt(own, base)),
        save(tmp_path / "module.safetensors", spelt(added, module)),
    ]
    target = tmp_path / "one.safetensors"
    made = convert(files[:: 1 if base == module else -1], target)
    assert same(target, spelt(weights(), base))
    assert made.tensors == len(weights())
    assert infer_geometry(open_checkpoint(target)).vace_layers == (0, 2)
    assert verify_pair(files, target).differences == ()
    assert verify_pair(files[0], target).differences, "one of them is not all of it"


@pytest.mark.parametrize("dtype", ["float32", "fp8_scaled"])
def test_a_cast_of_both_is_that_of_one_file_of_both(tmp_path: Path, dtype: str) -> None:
    own, added = parts()
    files = [
        save(tmp_path / "base.safetensors", {**scaled(own), **MARK}),
        save(tmp_path / "module.safetensors", spelt(added, "prefixed")),
    ]
    one = save(tmp_path / "one.safetensors", {**scaled(own), **added, **MARK})
    for number, source in enumerate((files, one)):
        convert(source, tmp_path / f"{number}.safetensors", dtype=dtype)
    assert same(tmp_path / "0.safetensors", load_file(tmp_path / "1.safetensors"))
    assert verify_pair(files, tmp_path / "0.safetensors").differences == ()


def test_shards_without_an_index_are_one_model(tmp_path: Path) -> None:
    own = parts()[0]
    halves = [dict(list(own.items())[at::2]) for at in (0, 1)]
    files = [save(tmp_path / f"{n}.safetensors", half) for n, half in enumerate(halves)]
    convert(files, tmp_path / "one.safetensors")
    assert same(tmp_path / "one.safetensors", own)


def test_packed_weights_are_kept_where_one_file_says_of_both_what_each_said(tmp_path: Path) -> None:
    """Both with ComfyUI's mark; then the base alone is scaled, and the module alone."""
    own, added = parts()
    for n, (base, module) in enumerate((
        ({**scaled(own), **MARK}, {**scaled(added), **MARK}),
        ({**scaled(own), **MARK}, added),
        (own, scaled(added, "weight_scale")),
    )):  # fmt: skip
        files = [
            save(tmp_path / f"base{n}.safetensors", base),
            save(tmp_path / f"module{n}.safetensors", module),
        ]
        target = tmp_path / f"one{n}.safetensors"
        convert(files, target)
        assert same(target, {**module, **base})
        found = unpacked(open_checkpoint(target)).tensors
        told = [t.packing and t.packing.format for t in found.values()]
        assert sum(each == "fp8 scaled" for each in told) == len(
            [key for key in load_file(target) if "scale" in key and "scaled" not in key]
        )


def test_what_one_file_cannot_say_of_both_is_refused(tmp_path: Path) -> None:
    """The words of a header are about its own layers, and a joined file has those of its model."""
    own, added = parts()
    said = {key: {"format": "float8_e4m3fn"} for key in ("vace_blocks.0.ffn.0",)}
    module = scaled(added, "weight_scale")
    module["vace_blocks.0.ffn.0.weight"] = module["vace_blocks.0.ffn.0.weight"].view(torch.uint8)
    files = [
        save(tmp_path / "base.safetensors", own, _quantization_metadata='{"layers": {}}'),
        save(
            tmp_path / "module.safetensors", module,
            _quantization_metadata=json.dumps({"layers": said}),
        ),
    ]  # fmt: skip
    with pytest.raises(ArgsError, match=r"exclude each other .* give a dtype"):
        convert(files, tmp_path / "one.safetensors")
    convert(files, tmp_path / "one.safetensors", dtype="bfloat16")
    found = load_file(tmp_path / "one.safetensors")["vace_blocks.0.ffn.0.weight"]
    number = module["vace_blocks.0.ffn.0.weight"].view(torch.float8_e4m3fn)
    assert torch.equal(found, number.bfloat16() * torch.tensor(1 / 64).bfloat16())


def test_two_models_are_no_model_and_its_module(tmp_path: Path) -> None:
    file = save(tmp_path / "base.safetensors", parts()[0])
    with pytest.raises(GeometryError, match="each of which is a whole model"):
        convert([file, file], tmp_path / "one.safetensors")
    other = replace(WHOLE, num_layers=2, vace_layers=(), vace_in_channels=0)
    small = {k: torch.zeros(s).bfloat16() for k, s in file_names(other).items()}
    module = {**parts()[1], "blocks.0.ffn.0.bias": small["blocks.0.ffn.0.bias"]}
    path = save(tmp_path / "module.safetensors", module)
    with pytest.raises(GeometryError, match=r"1 tensors that .* has, too"):
        convert([file, path], tmp_path / "one.safetensors")


def test_the_command_line_takes_modules(tmp_path: Path) -> None:
    own, added = parts()
    base = save(tmp_path / "base.safetensors", own)
    module = save(tmp_path / "module.safetensors", added)
    command = ["convert", str(base), str(tmp_path / "one.safetensors"), "--module", str(module)]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    told = CliRunner().invoke(app, [*command, "--verify"])
    assert told.exit_code == 0, told.output
    assert "base.safetensors + " in told.output.replace("\n", "")
