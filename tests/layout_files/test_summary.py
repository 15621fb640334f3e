"""The figures that tell a person what a checkpoint is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_samples import STATED, TINY, save_geometry
from safetensors.torch import save_file

from blockswap.errors import GeometryError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import parameter_count, tensor_names
from blockswap.layout.summary import describe


def test_bytes_add_up(tmp_path: Path) -> None:
    geometry = replace(TINY, image_dim=8, added_kv=True, vace_layers=(0, 2), vace_in_channels=6)
    summary = describe(open_checkpoint(save_geometry(tmp_path / "f.safetensors", geometry)))
    assert summary.parameters == parameter_count(geometry)
    assert summary.nbytes == 2 * summary.parameters
    assert sum(summary.unit_bytes.values()) + summary.rest_bytes == summary.nbytes
    assert summary.dtype_bytes == {"float16": summary.nbytes}
    assert summary.file_bytes == (tmp_path / "f.safetensors").stat().st_size
    assert set(summary.unit_bytes) == {
        *(f"blocks.{i}" for i in range(4)),
        *(f"vace_blocks.{i}" for i in range(2)),
        "text_embedding",
        "img_emb",
    }


def test_mixed_blocks_are_measured_by_their_bytes(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(shape).half() for name, shape in tensor_names(TINY).items()}
    tensors["blocks.2.modulation"] = tensors["blocks.2.modulation"].float()
    save_file(tensors, tmp_path / "f.safetensors", STATED)
    summary = describe(open_checkpoint(tmp_path / "f.safetensors"))
    assert summary.block_count == 4
    assert summary.block_bytes_max - summary.block_bytes_min == 2 * 6 * 32
    assert summary.unit_bytes["blocks.2"] == summary.block_bytes_max
    assert list(summary.dtype_bytes) == ["float16", "float32"]
    assert summary.dtype_bytes["float32"] == 4 * 6 * 32


def test_scales_are_bytes_but_no_parameters(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(shape).half() for name, shape in tensor_names(TINY).items()}
    tensors["blocks.0.ffn.0.scale_weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "f.safetensors", STATED)
    summary = describe(open_checkpoint(tmp_path / "f.safetensors"))
    assert summary.parameters == parameter_count(TINY)
    assert summary.nbytes == 2 * summary.parameters + 4
    assert summary.geometry.extras == ("blocks.0.ffn.0.scale_weight",)


def test_alignment_is_that_of_the_offsets(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save_geometry(tmp_path / "f.safetensors"))
    summary, offsets = describe(checkpoint), [t.offset for t in checkpoint.tensors.values()]
    assert summary.aligned_16 == sum(o % 16 == 0 for o in offsets) / len(offsets)
    assert summary.aligned_4096 == sum(o % 4096 == 0 for o in offsets) / len(offsets)


def test_an_unpublished_geometry_is_described_without_a_name(tmp_path: Path) -> None:
    summary = describe(open_checkpoint(save_geometry(tmp_path / "f.safetensors")))
    assert summary.variants == ()
    assert summary.label == "f"


def test_another_model_is_not_described(tmp_path: Path) -> None:
    save_file({"double_blocks.0.x": torch.zeros(1)}, tmp_path / "f.safetensors")
    with pytest.raises(GeometryError, match="Flux"):
        describe(open_checkpoint(tmp_path / "f.safetensors"))
