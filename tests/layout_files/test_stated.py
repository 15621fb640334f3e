"""What a checkpoint says of itself, and where that is not believed."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_samples import TINY, save_shapes

from blockswap.errors import GeometryError
from blockswap.layout.checkpoint import Checkpoint, open_checkpoint
from blockswap.layout.geometry import WanGeometry, infer_geometry, tensor_names
from blockswap.layout.geometry.claims import check_claims
from blockswap.layout.geometry.stated import stated_by

VACE = replace(TINY, vace_layers=(0, 1, 3), vace_in_channels=6)


def inferred(
    folder: Path,
    config: dict[str, object] | None = None,
    metadata: dict[str, str] | None = None,
    geometry: WanGeometry = TINY,
) -> WanGeometry:
    save_shapes(folder / "diffusion_pytorch_model.safetensors", tensor_names(geometry), metadata)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return infer_geometry(open_checkpoint(folder))


@pytest.mark.parametrize("name", ["num_heads", "num_attention_heads"])
def test_heads_may_be_stated_in_the_config(tmp_path: Path, name: str) -> None:
    assert inferred(tmp_path, {name: 4}).num_heads == 4


def test_heads_may_be_stated_in_the_metadata(tmp_path: Path) -> None:
    assert inferred(tmp_path, metadata={"wan.num_heads": "4"}).num_heads == 4


def test_vace_layers_and_eps_may_be_stated_in_the_config(tmp_path: Path) -> None:
    config = {"num_heads": 2, "vace_layers": [0, 1, 3], "eps": 1e-5}
    assert inferred(tmp_path, config, geometry=VACE) == replace(VACE, eps=1e-5)


def test_statements_that_agree_are_fine(tmp_path: Path) -> None:
    config = {"num_heads": 2, "dim": 32, "in_dim": 4, "out_channels": None, "num_layers": 4}
    assert inferred(tmp_path, config, {"wan.num_heads": "2"}) == TINY


def test_metadata_and_config_may_not_disagree(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match=r"metadata says heads = 2, config.json 4"):
        inferred(tmp_path, {"num_heads": 4}, {"wan.num_heads": "2"})


@pytest.mark.parametrize(
    ("name", "claim", "true"),
    [
        ("num_layers", 40, 4),
        ("dim", 5120, 32),
        ("ffn_dim", "48", 48),
        ("in_channels", 36, 4),
        ("in_dim", 36, 4),
        ("out_dim", 16, 4),
    ],
)
def test_a_config_of_another_model_is_refused(
    tmp_path: Path, name: str, claim: object, true: int
) -> None:
    words = f"config.json says {name} = {claim!r}, the tensors have {true}"
    with pytest.raises(GeometryError, match=re.escape(words)):
        inferred(tmp_path, {"num_heads": 2, name: claim})


@pytest.mark.parametrize("value", [0, -2, 2.0, "2", True, [2]])
def test_a_malformed_head_count_in_the_config_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(GeometryError, match="which is not a number of heads"):
        inferred(tmp_path, {"num_heads": value})


@pytest.mark.parametrize("value", ["0", "", "two", "2.0", "9999999", "-2", "٢"])
def test_a_malformed_head_count_in_the_metadata_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(GeometryError, match="which is not a number of heads"):
        inferred(tmp_path, metadata={"wan.num_heads": value})


@pytest.mark.parametrize("value", ["0,1,", "", "0;1;3", "0,1,99999999"])
def test_malformed_vace_layers_in_the_metadata_are_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(GeometryError, match="which is not a list of layers"):
        inferred(tmp_path, metadata={"wan.num_heads": "2", "wan.vace_layers": value}, geometry=VACE)


@pytest.mark.parametrize("value", ["0,1,3", [0, 1, 3.0], [0, True, 3], 3, []])
def test_malformed_vace_layers_in_the_config_are_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(GeometryError, match=r"vace_layers|VACE layers"):
        inferred(tmp_path, {"num_heads": 2, "vace_layers": value}, geometry=VACE)


@pytest.mark.parametrize("value", [0.0, -1e-6, 1.5, "1e-6", 1, True])
def test_a_malformed_eps_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(GeometryError, match=r"eps = .*which is not a small positive number"):
        inferred(tmp_path, {"num_heads": 2, "eps": value})


@pytest.mark.parametrize(
    "name", ["ChronoEditTransformer3DModel", "SkyReelsV2Transformer3DModel", "Other", 7]
)
def test_the_config_of_another_class_is_refused_by_its_name(tmp_path: Path, name: object) -> None:
    with pytest.raises(GeometryError, match=f"is a '?{name}'?, and blockswap opens WanTransformer"):
        inferred(tmp_path, {"num_heads": 2, "_class_name": name})


@pytest.mark.parametrize("name", ["WanTransformer3DModel", "WanModel", None])
def test_the_classes_that_open_may_be_named(tmp_path: Path, name: object) -> None:
    assert inferred(tmp_path, {"num_heads": 2, "_class_name": name}) == TINY


@pytest.mark.parametrize("name", ["WanVACETransformer3DModel", "VaceWanModel", None])
def test_the_classes_of_vace_models_may_be_named(tmp_path: Path, name: object) -> None:
    config = {"num_heads": 2, "_class_name": name, "vace_layers": [0, 1, 3]}
    assert inferred(tmp_path, config, geometry=VACE) == VACE


@pytest.mark.parametrize("first", [("in_dim", "in_channels"), ("in_channels", "in_dim")])
def test_of_two_spellings_one_may_mean_nothing(tmp_path: Path, first: tuple[str, str]) -> None:
    assert inferred(tmp_path, {"num_heads": 2, first[0]: 4, first[1]: 36}) == TINY


@pytest.mark.parametrize(("dim", "known"), [(5120, 40), (3072, 30), (1536, 30)])
def test_a_file_that_ends_too_early_is_refused_unless_it_says_so(
    dim: int, known: int, tmp_path: Path
) -> None:
    headers = open_checkpoint(save_shapes(tmp_path / "f.safetensors", {"a": (1,)})).headers

    def check(layers: int, **said: dict[str, object]) -> None:
        metadata = {key: str(value) for key, value in said.get("metadata", {}).items()}
        checkpoint = Checkpoint("cut", headers, "", {}, (), metadata, said.get("config"))
        check_claims(checkpoint, WanGeometry(dim=dim, num_layers=layers), stated_by(checkpoint))

    with pytest.raises(GeometryError, match=rf"ends at block 9, .* {known} blocks.*wan.num_layers"):
        check(10)
    check(known)
    check(10, metadata={"wan.num_layers": 10})
    check(10, config={"num_layers": 10})
    with pytest.raises(GeometryError, match=r"states wan.num_layers = '11'"):
        check(10, metadata={"wan.num_layers": 11})
    with pytest.raises(GeometryError, match=r"num_layers = 40"):
        check(known - 1, config={"num_layers": 40})
