"""Which names belong to the transformer, and what they are without their prefix."""

from pathlib import Path

import pytest
from checkpoint_samples import save_shapes

from blockswap.errors import CheckpointError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.prefix import PREFIXES, bare_keys, common_prefix


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
def test_a_prefix_on_every_name_is_taken_off(prefix: str) -> None:
    names = [f"{prefix}blocks.0.modulation", f"{prefix}anything.else"]
    assert bare_keys("x", names) == (
        prefix,
        {names[0]: "blocks.0.modulation", names[1]: "anything.else"},
    )


def test_the_longest_prefix_is_the_prefix() -> None:
    assert common_prefix(["model.x", "model.diffusion_model.y"]) == "model.diffusion_model."


def test_the_rest_of_a_full_checkpoint_is_left_out(tmp_path: Path) -> None:
    names = (
        "model.diffusion_model.blocks.0.modulation",
        "model.diffusion_model.head.modulation",
        "first_stage_model.decoder.conv.weight",
        "text_encoders.umt5xxl.transformer.shared.weight",
        "model.ema_decay",
    )
    checkpoint = open_checkpoint(
        save_shapes(tmp_path / "full.safetensors", dict.fromkeys(names, (1,)))
    )
    assert set(checkpoint.tensors) == {"blocks.0.modulation", "head.modulation"}
    assert set(checkpoint.left_out) == set(names[2:])
    assert checkpoint.prefix == "model.diffusion_model."


def test_the_name_in_the_file_is_kept(tmp_path: Path) -> None:
    path = save_shapes(tmp_path / "x.safetensors", {"diffusion_model.head.modulation": (1,)})
    tensor = open_checkpoint(path).tensors["head.modulation"]
    assert tensor.name == "diffusion_model.head.modulation"
    assert tensor.key == "head.modulation"


def test_bare_transformer_names_beside_prefixed_ones_are_kept() -> None:
    names = ["model.blocks.0.modulation", "blocks.1.modulation", "vae.conv.weight"]
    assert bare_keys("x", names)[1] == {
        "model.blocks.0.modulation": "blocks.0.modulation",
        "blocks.1.modulation": "blocks.1.modulation",
    }


def test_a_prefixed_and_a_bare_name_of_one_tensor_collide() -> None:
    with pytest.raises(CheckpointError, match=r"holds 'head.modulation' twice, as 'head"):
        bare_keys("x", ["head.modulation", "model.head.modulation"])


@pytest.mark.parametrize(
    "prefix",
    [
        "transformer.",
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.module.",
        "module.model.diffusion_model.",
        "transformer._orig_mod.",
    ],
)
def test_wrappers_of_frameworks_are_taken_off(prefix: str) -> None:
    names = [f"{prefix}blocks.0.modulation", f"{prefix}anything.else"]
    assert bare_keys("x", names) == (
        prefix,
        {names[0]: "blocks.0.modulation", names[1]: "anything.else"},
    )


def test_a_wrapper_counts_only_before_a_transformer() -> None:
    names = ["transformer.shared.weight", "module.layers.0.weight", "blocks.0.modulation"]
    assert bare_keys("x", names) == ("", {name: name for name in names})


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "module."])
@pytest.mark.parametrize("marker", ["model_type.Some-Name-T2V", "step", "freqs", "epoch"])
@pytest.mark.parametrize("inside", [False, True])
def test_markers_are_left_out(prefix: str, marker: str, inside: bool, tmp_path: Path) -> None:
    key = f"{prefix}blocks.0.modulation"
    extra = prefix + marker if inside else marker
    path = save_shapes(tmp_path / "f.safetensors", {key: (1,), extra: (1,)})
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.tensors) == {"blocks.0.modulation"}
    assert checkpoint.left_out == (extra,)
