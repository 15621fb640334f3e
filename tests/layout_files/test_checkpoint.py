"""Opening one or many files as one checkpoint."""

import json
import re
from pathlib import Path

import pytest
import torch
from checkpoint_samples import INDEX, save_index, save_shapes, save_shards, shard_name, zeros
from safetensors.torch import save_file

from blockswap.errors import CheckpointError, HeaderError
from blockswap.layout import shards as shards_module
from blockswap.layout.checkpoint import open_checkpoint


def one_file(folder: Path, *names: str, file: str = "wan.safetensors") -> Path:
    return save_shapes(folder / file, dict.fromkeys(names, (2,)), metadata=None)


def refused(path: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_single_file_is_a_checkpoint(tmp_path: Path) -> None:
    path = one_file(tmp_path, "a", "b")
    checkpoint = open_checkpoint(path)
    assert checkpoint.label == "wan"
    assert checkpoint.paths == (path,)
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.nbytes == 8
    assert checkpoint.config is None


def test_stored_tensors_point_at_their_bytes_in_their_shard(tmp_path: Path) -> None:
    values = {f"t{i}": torch.full((i + 1,), i, dtype=torch.uint8) for i in range(4)}
    save_file({name: values[name] for name in ("t0", "t2")}, tmp_path / shard_name(1, 2))
    save_file({name: values[name] for name in ("t1", "t3")}, tmp_path / shard_name(2, 2))
    save_index(tmp_path, {f"t{i}": shard_name(1 + i % 2, 2) for i in range(4)})
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in checkpoint.tensors.items():
        data = checkpoint.paths[tensor.shard].read_bytes()
        assert list(data[tensor.offset : tensor.offset + tensor.nbytes]) == values[name].tolist()


def test_an_index_and_its_folder_open_alike(tmp_path: Path) -> None:
    index = save_shards(tmp_path, (["a", "b"], ["c"]))
    by_index, by_folder = open_checkpoint(index), open_checkpoint(tmp_path)
    assert by_index.tensors == by_folder.tensors
    assert by_index.paths == by_folder.paths
    assert by_index.label == "diffusion_pytorch_model"
    assert by_folder.label == tmp_path.name


def test_a_folder_of_one_file_opens(tmp_path: Path) -> None:
    one_file(tmp_path, "a")
    assert list(open_checkpoint(tmp_path).tensors) == ["a"]


def test_a_folder_opens_its_diffusers_file_among_others(tmp_path: Path) -> None:
    one_file(tmp_path, "vae", file="Wan_VAE.safetensors")
    one_file(tmp_path, "a", file="diffusion_pytorch_model.safetensors")
    assert list(open_checkpoint(tmp_path).tensors) == ["a"]


def test_a_complete_set_of_shards_opens_without_an_index(tmp_path: Path) -> None:
    save_shards(tmp_path, (["a"], ["b"], ["c"])).unlink()
    assert sorted(open_checkpoint(tmp_path).tensors) == ["a", "b", "c"]


def test_an_incomplete_set_of_shards_names_the_missing_one(tmp_path: Path) -> None:
    save_shards(tmp_path, (["a"], ["b"], ["c"])).unlink()
    (tmp_path / shard_name(2, 3)).unlink()
    refused(tmp_path, "2 of 3 shards, shard 2 is missing")


def test_a_folder_of_unrelated_files_asks_for_one(tmp_path: Path) -> None:
    one_file(tmp_path, "a", file="high.safetensors")
    one_file(tmp_path, "a", file="low.safetensors")
    refused(tmp_path, "holds 2 .safetensors files ('high.safetensors', 'low.safetensors')")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "holds no .safetensors or .gguf file: give a checkpoint")


def test_of_several_gguf_files_one_must_be_named(tmp_path: Path) -> None:
    for name in ("high-Q8_0.gguf", "low-Q8_0.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    refused(tmp_path, "holds 2 .gguf files ('high-Q8_0.gguf', 'low-Q8_0.gguf'): give the file")


def test_a_pipeline_folder_points_at_its_transformers(tmp_path: Path) -> None:
    for name in ("transformer", "transformer_2"):
        (tmp_path / name).mkdir()
        one_file(tmp_path / name, "a")
    (tmp_path / "scheduler").mkdir()
    refused(tmp_path, "its folders 'transformer', 'transformer_2' do")


def test_a_folder_that_cannot_be_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    refused(tmp_path, "cannot be listed (Permission denied)")


def test_two_indices_in_a_folder_ask_for_one(tmp_path: Path) -> None:
    save_shards(tmp_path, (["a"],))
    (tmp_path / "fp16.safetensors.index.json").write_text("{}")
    refused(tmp_path, "holds 2 indices")


def test_an_absent_path_is_said_to_be_absent(tmp_path: Path) -> None:
    refused(tmp_path / "no.safetensors", "is not there")


def test_a_name_with_a_zero_byte_is_refused() -> None:
    refused(Path("a\0b"), "zero byte")


def test_one_shard_of_several_is_not_a_checkpoint(tmp_path: Path) -> None:
    save_shards(tmp_path, (["a"], ["b"]))
    refused(tmp_path / shard_name(1, 2), "is shard 1 of 2: give its index or its folder")


def test_one_shard_of_one_is_a_checkpoint(tmp_path: Path) -> None:
    save_shards(tmp_path, (["a"],))
    assert list(open_checkpoint(tmp_path / shard_name(1, 1)).tensors) == ["a"]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_shards(tmp_path, (["a"], ["b"]))
    (tmp_path / shard_name(2, 2)).unlink()
    refused(tmp_path, f"needs the shard '{shard_name(2, 2)}', it is missing")


def test_a_damaged_shard_is_a_header_error(tmp_path: Path) -> None:
    save_shards(tmp_path, (["a"], ["b"]))
    (tmp_path / shard_name(2, 2)).write_bytes(b"123")
    with pytest.raises(HeaderError, match="3 bytes"):
        open_checkpoint(tmp_path)


def test_a_shard_that_lacks_what_the_index_says_is_refused(tmp_path: Path) -> None:
    save_shards(tmp_path, (["a"], ["b"]))
    save_index(tmp_path, {"a": shard_name(1, 2), "b": shard_name(2, 2), "c": shard_name(2, 2)})
    refused(tmp_path, "lacks tensor 'c', which its index says it holds")


def test_an_index_that_names_the_wrong_shard_is_refused(tmp_path: Path) -> None:
    save_shards(tmp_path, (["a"], ["b"]))
    save_index(tmp_path, {"a": shard_name(2, 2), "b": shard_name(1, 2)})
    refused(tmp_path, "lacks tensor 'a'")


def test_a_shard_with_more_than_the_index_lists_is_refused(tmp_path: Path) -> None:
    save_shards(tmp_path, (["a", "x", "y"], ["b"]))
    save_index(tmp_path, {"a": shard_name(1, 2), "b": shard_name(2, 2)})
    refused(tmp_path, "holds 2 tensors that its index does not list ('x', 'y')")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    save_shards(tmp_path, (["a", "x"], ["a", "b"]))
    refused(tmp_path, "holds tensor 'a' twice, in " + shard_name(1, 2))


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "../other.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "",
        "C:\\weights.safetensors",
        "sub/shard.safetensors",
        "a\0.safetensors",
    ],
)
def test_an_index_may_not_point_outside_its_folder(tmp_path: Path, name: str) -> None:
    refused(save_index(tmp_path, {"a": name}), "points outside its own folder")


def test_an_index_of_pickles_is_refused(tmp_path: Path) -> None:
    refused(save_index(tmp_path, {"a": "pytorch_model.bin"}), "no .safetensors file")


@pytest.mark.parametrize("weight_map", [None, [], {}, 3])
def test_an_index_without_a_map_is_refused(tmp_path: Path, weight_map: object) -> None:
    refused(save_index(tmp_path, weight_map), "has no weight_map")


def test_an_index_that_maps_to_no_name_is_refused(tmp_path: Path) -> None:
    refused(save_index(tmp_path, {"a": 3}), "names no shard for tensor 'a'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "array instead of an object"),
        ('{"a":1,"a":2}', "says 'a' twice"),
    ],
)
def test_an_index_that_is_no_object_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / INDEX).write_text(text)
    refused(tmp_path / INDEX, words)


def test_a_folder_named_like_an_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX).mkdir()
    refused(tmp_path, "is not a regular file")


def test_an_index_of_absurd_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_shards(tmp_path, (["a"],))
    monkeypatch.setattr(shards_module, "MAX_HEADER_BYTES", 10)
    refused(tmp_path, "has more than 10 bytes")


def test_an_unreadable_index_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_shards(tmp_path, (["a"],))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    refused(tmp_path, "cannot be read (Permission denied)")


def test_the_config_of_a_folder_is_kept(tmp_path: Path) -> None:
    save_shards(tmp_path, (["a"],))
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 12}))
    assert open_checkpoint(tmp_path).config == {"num_heads": 12}
    assert open_checkpoint(tmp_path / INDEX).config == {"num_heads": 12}


def test_a_config_beside_a_file_counts_only_in_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    plain = one_file(tmp_path, "a", file="wan.safetensors")
    model = one_file(tmp_path, "a", file="diffusion_pytorch_model.safetensors")
    assert open_checkpoint(plain).config is None
    assert open_checkpoint(model).config == {}


def test_a_damaged_config_is_refused(tmp_path: Path) -> None:
    one_file(tmp_path, "a")
    (tmp_path / "config.json").write_text("{'a': 1}")
    refused(tmp_path, "config.json is not JSON")


def test_metadata_of_all_shards_is_joined_and_the_first_word_stands(tmp_path: Path) -> None:
    save_file(zeros({"a": (1,)}), tmp_path / shard_name(1, 2), {"k": "1", "x": "x"})
    save_file(zeros({"b": (1,)}), tmp_path / shard_name(2, 2), {"k": "2", "y": "y"})
    save_index(tmp_path, {"a": shard_name(1, 2), "b": shard_name(2, 2)})
    assert open_checkpoint(tmp_path).metadata == {"k": "1", "x": "x", "y": "y"}


def test_what_was_opened_cannot_be_changed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(one_file(tmp_path, "a"))
    with pytest.raises(TypeError):
        checkpoint.tensors["b"] = checkpoint.tensors["a"]  # type: ignore[index]


def test_random_bytes_as_a_file_never_surprise(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for size in range(0, 300, 7):
        path.write_bytes(bytes(range(256))[: size % 256])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
