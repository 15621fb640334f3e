"""`convert --dtype` makes a plain file of a quantised one, with what its package makes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from files import Shelf, forward, is_packed
from safetensors.torch import load_file

from blockswap import BlockSwapArgs, open_transformer
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


@pytest.mark.parametrize("source", ["bf16", "gguf-Q8_0", "fp8-groups"])
@pytest.mark.parametrize("padding", [True, False])
def test_scaled_fp8_is_written_as_it_is_read(
    source: str, padding: bool, packed_files: Shelf, tmp_path: Path
) -> None:
    path = packed_files.file("fp8-groups" if source == "bf16" else source, "t2v")
    plain = load_file(path.parent / "t2v-plain" / "diffusion_pytorch_model.safetensors")
    if source == "bf16":
        path = path.parent / "t2v-plain"
    target = tmp_path / "scaled.safetensors"
    made = convert(path, target, dtype="fp8_scaled", padding=padding)
    found = load_file(target)
    assert found["scaled_fp8"].dtype == torch.float8_e4m3fn
    assert found["scaled_fp8"].numel() == 0
    matrices = {key for key, tensor in plain.items() if is_packed(key, tensor)}
    scaled = {key for key, tensor in found.items() if tensor.dtype == torch.float8_e4m3fn}
    assert scaled == matrices | {"scaled_fp8"}
    for key in matrices:
        scale = found[key.removesuffix("weight") + "scale_weight"]
        assert scale.dtype == torch.float32
        assert scale.shape == ()
        error = (found[key].float() * scale - plain[key].float()).norm() / plain[key].float().norm()
        assert 0 < error < 0.04
    assert [note for note in made.notes if f"{len(matrices)} weights are scaled fp8" in note]
    assert verify_pair(path, target).differences == ()


def test_scaled_fp8_opens_and_moves_half_the_bytes(packed_files: Shelf, tmp_path: Path) -> None:
    path = packed_files.file("fp8-groups", "t2v").parent / "t2v-plain"
    folder = tmp_path / "scaled"
    folder.mkdir()
    (folder / "config.json").write_bytes((path / "config.json").read_bytes())
    convert(path, folder / "diffusion_pytorch_model.safetensors", dtype="fp8_scaled")
    cpu, args = torch.device("cpu"), BlockSwapArgs(blocks_to_swap=3, prefetch_blocks=1)
    outs, read = [], []
    for source in (path, folder):
        opened: Any = open_transformer(source, args, device=cpu)
        with opened.blockswap as swap:
            outs.append(forward(opened, "t2v", cpu))
            read.append(swap.plan.read_bytes_per_forward)
    assert read[1] < 0.6 * read[0]
    assert not torch.equal(*outs)
    assert (outs[1] - outs[0]).norm() < 0.2 * outs[0].norm()


def test_gguf_blocks_have_no_place_in_safetensors(packed_files: Shelf, tmp_path: Path) -> None:
    with pytest.raises(ArgsError, match="give a dtype"):
        convert(packed_files.file("gguf-Q8_0", "t2v"), tmp_path / "t.safetensors")
    assert not list(tmp_path.iterdir())
