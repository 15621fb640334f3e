"""Files that hold a module to be put onto a model: said so, not taken for a damaged model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from blockswap.errors import GeometryError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import WanGeometry, infer_geometry, tensor_names

VACE = WanGeometry(
    dim=256, ffn_dim=512, num_layers=2, num_heads=2, vace_layers=(0,), vace_in_channels=96
)
MODULES = {
    "Wan VACE": [name for name in tensor_names(VACE) if name.startswith("vace_")],
    "MultiTalk / InfiniteTalk": [
        "audio_proj.proj1.weight",
        "blocks.0.audio_cross_attn.q_linear.weight",
        "blocks.0.norm_x.weight",
    ],
    "a Wan model with audio input": ["audio_proj.proj1.weight", "audio_proj.proj1.bias"],
    "Wan2.2-Animate": ["face_adapter.fuser_blocks.0.q_norm.weight", "pose_patch_embedding.weight"],
}


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
@pytest.mark.parametrize("kind", MODULES)
def test_a_module_is_called_a_module(tmp_path: Path, kind: str, prefix: str) -> None:
    save_file({prefix + name: torch.zeros(4) for name in MODULES[kind]}, tmp_path / "m.safetensors")
    with pytest.raises(GeometryError, match=f"is a module of {kind} without the model"):
        infer_geometry(open_checkpoint(tmp_path / "m.safetensors"))
