"""Rows of packed weights, as converters split them: those of the package's whole dequantisation."""

from pathlib import Path

import pytest
import torch
from files import NAMES, PLAIN, Shelf

from blockswap.convert.weights import decoded
from blockswap.layout.checkpoint import StoredTensor, open_checkpoint
from blockswap.layout.formats import unpacked
from blockswap.layout.packed_rows import packed_rows

KEY = "blocks.1.ffn.net.0.proj.weight"
WHOLE = ("fp8-blocks", "comfy-mxfp8", "comfy-nvfp4")  # a scale is of several rows, or in tiles


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*PLAIN, "fp8")])
def test_a_third_of_the_rows(name: str, packed_files: Shelf) -> None:
    checkpoint = unpacked(open_checkpoint(packed_files.file(name, "t2v")))
    tensor, whole = checkpoint.tensors[KEY], packed_files.stored(name, "t2v")[KEY]
    rows, columns = tensor.shape
    assert packed_rows(tensor, 3, (4, columns)) is None, "not whole rows"
    assert packed_rows(tensor, 0, (2 * rows, columns // 2)) is None
    for first, count in ((0, 128), (128, 256), (384, 128), (5, 3)):
        found = packed_rows(tensor, first * columns, (count, columns))
        assert (found is None) == (name in WHOLE)
        if found is None:
            continue
        assert found.packing is not None
        assert found.nbytes < tensor.nbytes

        def read(part: StoredTensor, into: bytearray) -> None:
            path: Path = checkpoint.paths[part.shard]
            data = path.read_bytes()
            into[:] = data[part.offset : part.offset + part.nbytes]

        made = decoded(found.packing, found.shape, "bfloat16", read)
        assert torch.equal(made, whole[first : first + count])
