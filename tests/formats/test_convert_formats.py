"""`convert --dtype` makes a plain file of a quantised one, with what its package makes of it."""

from pathlib import Path

import pytest
import torch
from files import Shelf
from safetensors.torch import load_file

from blockswap.convert import convert, verify_pair
from blockswap.errors import ArgsError

NAMES = ("fp8-scale_weight", "fp8-groups", "comfy-fp8", "comfy-int8-rotated", "comfy-nvfp4",
         "quanto-int8", "gguf-mixed")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_quantised_file_is_dequantised(name: str, packed_files: Shelf, tmp_path: Path) -> None:
    source, target = packed_files.file(name, "t2v"), tmp_path / "plain.safetensors"
    made = convert(source, target, dtype="bfloat16", padding=False)
    plain = source.parent / "t2v-plain" / "diffusion_pytorch_model.safetensors"
    expected, found = load_file(plain), load_file(target)
    assert found.keys() == expected.keys()
    assert made.tensors == len(expected)
    for key, tensor in found.items():
        same = expected[key]
        if tensor.dim() == 2 or tensor.dtype == same.dtype:
            assert torch.equal(tensor, same), key
        else:  # the rest of a GGUF file is cast, as of any other
            assert torch.equal(tensor, same.to(tensor.dtype)), key
    assert verify_pair(source, target).differences == ()


@pytest.mark.parametrize("name", ["fp8-scale_weight", "comfy-nvfp4", "quanto-int8"])
def test_without_a_dtype_it_stays_as_it_is(name: str, packed_files: Shelf, tmp_path: Path) -> None:
    source, target = packed_files.file(name, "t2v"), tmp_path / "same.safetensors"
    convert(source, target, padding=False)
    before = load_file(source / "diffusion_pytorch_model.safetensors")
    after = load_file(target)
    assert after.keys() == before.keys()
    assert all(tensor.dtype == before[key].dtype for key, tensor in after.items())
    assert verify_pair(source, target).differences == ()


def test_gguf_blocks_have_no_place_in_safetensors(packed_files: Shelf, tmp_path: Path) -> None:
    with pytest.raises(ArgsError, match="give a dtype"):
        convert(packed_files.file("gguf-Q8_0", "t2v"), tmp_path / "t.safetensors")
    assert not list(tmp_path.iterdir())
