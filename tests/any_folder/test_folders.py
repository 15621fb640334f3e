"""Transformers of diffusers from their folders and from a vendor's file, equal to the last bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockswap import open_text_encoder, open_transformer
from blockswap.errors import BlockSwapError

CONFIG = dict(
    in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16,
    cross_attention_dim=32, num_layers=4, caption_channels=24,
)  # fmt: skip
RENAMES = {"proj_in": "patchify_proj", "time_embed": "adaln_single", "norm_q": "q_norm",
           "norm_k": "k_norm"}  # fmt: skip


def saved(folder: Path, **how: Any) -> Path:
    """LTX's class, tiny, in bf16, as `save_pretrained` writes it."""
    from diffusers import LTXVideoTransformer3DModel

    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(**CONFIG).to(torch.bfloat16)
    model.save_pretrained(folder, **how)
    return folder


def run(model: torch.nn.Module, device: torch.device) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    given = {
        "hidden_states": torch.randn(1, 12, 8, generator=draw).to(torch.bfloat16),
        "encoder_hidden_states": torch.randn(1, 6, 24, generator=draw).to(torch.bfloat16),
        "timestep": torch.tensor([500]),
        "encoder_attention_mask": torch.ones(1, 6),
    }
    placed = {name: tensor.to(device) for name, tensor in given.items()}
    with torch.no_grad():
        return model(**placed, num_frames=1, height=3, width=4, return_dict=False)[0].cpu()


def loaded(folder: Path, device: torch.device, **how: Any) -> torch.nn.Module:
    from diffusers import LTXVideoTransformer3DModel

    found = LTXVideoTransformer3DModel.from_pretrained(folder, torch_dtype=torch.bfloat16, **how)
    return found.to(device)


def opened(path: Path, device: torch.device, args: Any, **how: Any) -> torch.Tensor:
    model: Any = open_transformer(path, args, device=device, **how)
    with model.blockswap as swap:
        assert type(model).__name__ == "LTXVideoTransformer3DModel"
        assert [unit.name for unit in swap.plan.units] == [
            f"transformer_blocks.{n}" for n in range(4)
        ]
        run(model, device)
        return run(model, device)


def test_folder_variant_shards_and_pipeline(device: torch.device, tmp_path: Path) -> None:
    folder = saved(tmp_path / "transformer", variant="fp16", max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    wanted = run(loaded(folder, device, variant="fp16"), device)
    named = {"transformer": ["diffusers", "LTXVideoTransformer3DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(named))
    for args in ({"blocks": "0,2"}, {"blocks_to_swap": 3}, {}):
        assert torch.equal(opened(folder, device, args, variant="fp16"), wanted)
    assert torch.equal(opened(tmp_path, device, {}, variant="fp16"), wanted)


def test_a_file_in_the_vendors_names(device: torch.device, tmp_path: Path) -> None:
    folder = saved(tmp_path / "folder")
    wanted = run(loaded(folder, device), device)
    (stored,) = folder.glob("*.safetensors")
    tensors = {}
    for name, tensor in load_file(stored).items():
        for ours, theirs in RENAMES.items():
            name = name.replace(ours, theirs)
        tensors[f"model.diffusion_model.{name}"] = tensor
    stored.unlink()
    path = tmp_path / "ltx.safetensors"
    save_file(tensors, path)
    assert torch.equal(opened(path, device, {"blocks_to_swap": 2}, config=folder), wanted)
    save_file({**tensors, "model.diffusion_model.strange": torch.ones(3)}, path)
    with pytest.raises(BlockSwapError, match="no place for"):
        opened(path, device, {}, config=folder)
    del tensors["model.diffusion_model.proj_out.bias"]
    save_file(tensors, path)
    with pytest.raises(BlockSwapError, match="lacks tensors that LTXVideo"):
        opened(path, device, {}, config=folder)


def test_refused_in_one_sentence(tmp_path: Path) -> None:
    folder, cpu = saved(tmp_path / "folder"), torch.device("cpu")
    with pytest.raises(BlockSwapError, match="open it with open_transformer"):
        open_text_encoder(folder, device="cpu")
    config = json.loads((folder / "config.json").read_text())
    for changes, words in (
        ({"_class_name": "MyTransformer"}, "is no model of diffusers"),
        ({"_class_name": "AutoPipelineForText2Image"}, "is no model of diffusers"),
        ({"num_layers": 5}, "lacks"),
        ({"num_layers": 3}, "no place for"),
        ({"caption_channels": 16}, "its config.json is of another model"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised by bitsandbytes"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(BlockSwapError, match=words) as refusal:
            opened(folder, cpu, {})
        assert "\n" not in str(refusal.value)
