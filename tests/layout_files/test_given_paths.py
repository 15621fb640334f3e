"""What a person may give as a checkpoint's path, and one sentence for what they may not."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_samples import INDEX, TINY, save_geometry, save_shapes

from blockswap.errors import CheckpointError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import infer_geometry

LONG = "a" * 300 + ".safetensors"


@pytest.mark.parametrize("given", [["a", "b"], ("a",), None, 7, b"a", {"a": 1}], ids=str)
def test_a_path_is_one_path(given: Any) -> None:
    with pytest.raises(CheckpointError, match=r"given by one path, not by a \w+: .*index or"):
        open_checkpoint(given)


def test_a_name_too_long_for_any_file_system_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not there: check the path"):
        open_checkpoint(tmp_path / LONG)


def test_a_shard_name_too_long_is_missing(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": LONG}}))
    with pytest.raises(CheckpointError, match="it is missing: download it"):
        open_checkpoint(tmp_path / INDEX)


@pytest.mark.parametrize("suffix", [".SAFETENSORS", ".SafeTensors"])
def test_a_suffix_may_be_in_capitals(suffix: str, tmp_path: Path) -> None:
    path = save_geometry(tmp_path / f"wan{suffix}")
    for given in (path, tmp_path, str(path)):
        assert infer_geometry(open_checkpoint(given)) == TINY


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model", "Wan2.1"])
@pytest.mark.parametrize(("there", "missing"), [(1, 2), (2, 1)])
def test_one_of_two_shards_without_an_index_says_which_is_missing(
    tmp_path: Path, stem: str, there: int, missing: int
) -> None:
    name = f"{stem}-0000{there}-of-00002.safetensors"
    save_shapes(tmp_path / name, {"blocks.0.modulation": (1,)})
    with pytest.raises(CheckpointError, match=f"holds 1 of 2 shards, shard {missing} is missing"):
        open_checkpoint(tmp_path)
