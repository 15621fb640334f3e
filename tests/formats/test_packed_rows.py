"""Rows of packed weights, as converters split them: those of the package's whole dequantisation."""

from pathlib import Path

import pytest
import torch
from files import NAMES, PLAIN, Shelf, weight_of
from packed import FORMATS
from safetensors.torch import save_file

from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.formats import unpacked
from blockswap.layout.packed_rows import packed_rows

KEY = "blocks.1.ffn.net.0.proj.weight"
# A scale is of so many rows, or in a tile of them; others are packed row by row.
HEIGHTS = {"fp8-blocks": 128, "comfy-mxfp8": 128, "comfy-nvfp4": 128}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*PLAIN, "fp8")])
def test_a_third_of_the_rows(name: str, packed_files: Shelf) -> None:
    checkpoint = unpacked(open_checkpoint(packed_files.file(name, "t2v")))
    tensor, whole = checkpoint.tensors[KEY], packed_files.stored(name, "t2v")[KEY]
    rows, columns = tensor.shape
    assert packed_rows(tensor, 3, (4, columns)) is None, "not whole rows"
    assert packed_rows(tensor, 0, (2 * rows, columns // 2)) is None
    height = HEIGHTS.get(name, 1)
    for first, count in ((0, 128), (128, 256), (384, 128), (5, 3), (0, 64), (64, 128)):
        found = packed_rows(tensor, first * columns, (count, columns))
        assert (found is None) == bool(first % height or count % height)
        if found is not None:
            assert found.nbytes < tensor.nbytes
            assert torch.equal(weight_of(checkpoint, found), whole[first : first + count])


@pytest.mark.parametrize("name", ["comfy-mxfp8", "comfy-nvfp4", "bands"])
def test_the_last_rows_may_be_fewer_than_a_tile_holds(name: str, tmp_path: Path) -> None:
    """Of 160 rows the second tile of scales holds 32; scales of 32 rows each have no such rest."""
    weight = torch.rand(160, 256, generator=torch.Generator().manual_seed(2)).sub_(0.5)
    if name == "bands":
        scale = weight.view(5, 32, 2, 128).abs().amax((1, 3)) / 448
        wide = scale[:, None, :, None]
        stored = (weight.view(5, 32, 2, 128) / wide).to(torch.float8_e4m3fn)
        parts = {"weight": stored.view(160, 256), "weight_scale": scale}
        whole = (stored.bfloat16() * wide.bfloat16()).view(160, 256)
    else:
        parts, whole = FORMATS[name].pack(weight, torch.bfloat16)
    layer = "blocks.0.self_attn.q"
    save_file(
        {f"{layer}.{k}": t.contiguous() for k, t in parts.items()}, tmp_path / "a.safetensors"
    )
    checkpoint = unpacked(open_checkpoint(tmp_path / "a.safetensors"))
    tensor = checkpoint.tensors[f"{layer}.weight"]
    for first, count in ((0, 128), (128, 32)):
        found = packed_rows(tensor, first * 256, (count, 256))
        assert found is not None
        assert torch.equal(weight_of(checkpoint, found), whole[first : first + count])
    assert packed_rows(tensor, 0, (144, 256)) is None, "its bound goes through a scale"
