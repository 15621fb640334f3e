"""Numbers that a trainer left beside a model: the model opens; beside 8-bit weights it does not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from blockswap import BlockSwapArgs, open_transformer
from blockswap.errors import GeometryError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import WanGeometry, infer_geometry, tensor_names

TINY = WanGeometry(dim=256, ffn_dim=512, num_layers=2, num_heads=2, text_dim=64)
MARKERS = ("iteration", "version", "trainer.state.step", "my_tool")


def write(path: Path, prefix: str, extra: dict[str, torch.Tensor], linears: torch.dtype) -> Path:
    def of(name: str) -> torch.dtype:
        return linears if name.endswith(("q.weight", "ffn.0.weight")) else torch.bfloat16

    weights = {prefix + n: torch.full(s, 0.5).to(of(n)) for n, s in tensor_names(TINY).items()}
    save_file({**weights, **extra}, path)
    return path


@pytest.mark.parametrize("shape", [(), (1,), (0,), (1, 1)])
@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "module."])
@pytest.mark.parametrize("marker", MARKERS)
def test_a_lone_number_of_nobodys_name_is_left_alone(tmp_path, marker, prefix, shape):
    extra = {marker: torch.zeros(shape)}
    path = write(tmp_path / "f.safetensors", prefix, extra, torch.bfloat16)
    checkpoint = open_checkpoint(path)
    geometry = infer_geometry(checkpoint)
    assert {*geometry.unused, *checkpoint.left_out} == {marker}
    open_transformer(path, BlockSwapArgs(blocks_to_swap=2), device="cpu").blockswap.close()


@pytest.mark.parametrize("name", ["blocks.0.new", "blocks.0.ffn.0.alpha", "head.gain", "table"])
def test_what_could_be_the_models_own_is_refused_by_name(tmp_path, name):
    shape = (4,) if name == "table" else (1,)
    path = write(tmp_path / "f.safetensors", "", {name: torch.zeros(shape)}, torch.bfloat16)
    with pytest.raises(GeometryError, match=name):
        open_transformer(path, BlockSwapArgs(blocks_to_swap=2), device="cpu")


def test_beside_8_bit_weights_a_lone_number_may_be_their_scale(tmp_path):
    path = write(tmp_path / "f.safetensors", "", {"gain": torch.ones(1)}, torch.float8_e4m3fn)
    with pytest.raises(GeometryError, match="gain"):
        open_transformer(path, BlockSwapArgs(blocks_to_swap=2), device="cpu", dtype=torch.bfloat16)
