"""`blockswap inspect` on small files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from blockswap.cli.app import app
from blockswap.cli.inspection import equal_runs, inspect_checkpoint
from blockswap.errors import BlockSwapError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import WanGeometry
from blockswap.synth import synth

runner = CliRunner()

TINY = WanGeometry(dim=64, ffn_dim=96, num_layers=4, num_heads=2, text_dim=32, freq_dim=32)
VACE = replace(TINY, vace_layers=(0, 2), vace_in_channels=96)
IMAGE = replace(TINY, in_channels=36, image_dim=24, added_kv=True)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return synth(TINY, tmp_path / "tiny.safetensors", mixed=True).path


def inspected(path: Path) -> dict[str, Any]:
    result = runner.invoke(app, ["inspect", str(path), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_tables_tell_geometry_dtypes_and_bytes_per_block(tiny: Path) -> None:
    result = runner.invoke(app, ["inspect", str(tiny)])
    assert result.exit_code == 0
    assert str(tiny) in result.stdout
    assert "a Wan transformer of no published geometry" in result.stdout
    assert "4 of 64 wide, 2 heads of 32, ffn 96" in result.stdout
    assert "blocks.0-3" in result.stdout
    assert "bf16 + fp32" in result.stdout
    assert "everything else" in result.stdout
    assert "all 4 blocks are" in result.stdout


def test_json_adds_up_to_the_file(tiny: Path) -> None:
    found = inspected(tiny)
    units = sum(unit["nbytes"] for unit in found["units"])
    assert units + found["rest"]["nbytes"] == found["bytes"]
    assert sum(found["dtype_bytes"].values()) == found["bytes"]
    assert found["files"] == [{"path": str(tiny), "bytes": tiny.stat().st_size}]
    assert found["geometry"]["num_layers"] == 4
    assert [unit["name"] for unit in found["units"]] == [
        "text_embedding",
        "blocks.0",
        "blocks.1",
        "blocks.2",
        "blocks.3",
    ]


def test_a_published_geometry_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blockswap.layout.geometry import variants

    monkeypatch.setattr(variants, "VARIANTS", {"wan-a": TINY, "wan-b": TINY})
    path = synth(TINY, tmp_path / "tiny.safetensors").path
    assert inspected(path)["models"] == ["wan-a", "wan-b"]
    assert "wan-a or wan-b" in runner.invoke(app, ["inspect", str(path)]).stdout


def test_shards_are_seen_as_one_checkpoint(tmp_path: Path) -> None:
    folder = synth(TINY, tmp_path / "shards", shard_bytes=200_000, naming="diffusers").path
    result = runner.invoke(app, ["inspect", str(folder)])
    assert result.exit_code == 0
    assert "diffusers" in result.stdout
    found = inspected(folder)
    assert len(found["files"]) > 1
    assert any(unit["shards"] == 2 for unit in found["units"])


def test_a_prefix_and_what_lies_beside_the_model_are_told(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    prefix = "model.diffusion_model."
    path = synth(TINY, tmp_path / "tiny.safetensors", prefix=prefix).path
    strangers = {f"first_stage_model.{i}": torch.zeros(4) for i in range(5)}
    save_file(load_file(path) | strangers, path, {"wan.num_heads": "2"})
    result = runner.invoke(app, ["inspect", str(path)])
    assert f"prefix {prefix}" in result.stdout
    assert "and 2 more: no part of the transformer" in result.stdout
    assert len(inspected(path)["left_out"]) == 5


def test_vace_and_image_parts_are_told(tmp_path: Path) -> None:
    vace = synth(VACE, tmp_path / "vace.safetensors").path
    image = synth(IMAGE, tmp_path / "image.safetensors").path
    assert "2 VACE blocks beside them" in runner.invoke(app, ["inspect", str(vace)]).stdout
    words = runner.invoke(app, ["inspect", str(image)]).stdout
    assert "24 wide" in words
    assert "img_emb" in words


def test_embedders_are_named_without_their_path(tmp_path: Path) -> None:
    path = synth(TINY, tmp_path / "tiny.safetensors", naming="diffusers").path
    words = runner.invoke(app, ["inspect", str(path)]).stdout
    assert "text_embedder" in words
    assert "condition_embedder" not in words


def test_alignment_is_the_largest_that_holds_for_every_tensor(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    found = inspect_checkpoint(checkpoint)
    for unit in (*found.units, found.rest):
        assert unit.alignment & (unit.alignment - 1) == 0
    whole = min(unit.alignment for unit in (*found.units, found.rest))
    offsets = [tensor.offset for tensor in checkpoint.tensors.values()]
    assert all(offset % whole == 0 for offset in offsets)
    assert any(offset % (2 * whole) for offset in offsets)


def test_a_unit_that_lies_in_one_piece_is_one_range(tmp_path: Path) -> None:
    plain = inspect_checkpoint(open_checkpoint(synth(TINY, tmp_path / "a.safetensors").path))
    mixed = synth(TINY, tmp_path / "b.safetensors", mixed=True).path
    assert {unit.ranges for unit in plain.units} == {1}
    blocks = [
        unit
        for unit in inspect_checkpoint(open_checkpoint(mixed)).units
        if unit.name.startswith("blocks.")
    ]
    assert {unit.ranges for unit in blocks} == {2}  # fp32 first, then bf16


def test_only_equal_neighbours_share_a_row(tiny: Path) -> None:
    units = inspect_checkpoint(open_checkpoint(tiny)).units
    odd = (*units[:3], replace(units[3], nbytes=1), units[4])
    runs = equal_runs(odd)
    assert sum(len(run) for run in runs) == len(odd)
    assert (odd[3],) in runs


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"PK\x03\x04" + b"x" * 60, "no safetensors file")],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_a_line(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "bad[0].safetensors"
    path.write_bytes(content)
    result = runner.invoke(app, ["inspect", str(path)])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert "bad[0].safetensors" in result.stderr


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = runner.invoke(app, ["inspect", str(tmp_path / "none.safetensors")])
    assert result.exit_code == 2
    assert "is not there" in result.stderr


def test_another_model_is_named_and_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file(
        {"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, tmp_path / "f.safetensors"
    )
    result = runner.invoke(app, ["inspect", str(tmp_path / "f.safetensors")])
    assert result.exit_code == 2
    assert "Flux" in result.stderr


@pytest.mark.parametrize(
    "dtype",
    ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32",
     "int16", "int8", "uint8", "bool", "complex64"],
)  # fmt: skip
def test_what_is_told_of_a_dtype_is_what_opening_does(
    dtype: str, tiny: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from blockswap import open_transformer

    path, tensors = tmp_path / "other.safetensors", load_file(tiny)
    for name in tensors:
        if name.endswith("ffn.0.weight"):
            tensors[name] = torch.zeros(tensors[name].shape).to(getattr(torch, dtype))
    save_file(tensors, path)
    result = runner.invoke(app, ["inspect", str(path)])
    try:
        open_transformer(path, device="cpu").blockswap.close()
    except BlockSwapError as error:
        assert result.exit_code in (1, 2), result.stdout
        assert str(error) in " ".join((result.stdout + result.stderr).split())
    else:
        assert result.exit_code == 0
        assert "does not open" not in result.stdout
