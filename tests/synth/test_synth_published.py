"""Synthesised folders of models beside Wan's: diffusers loads them, and they stream."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blockswap import open_transformer
from blockswap.errors import ArgsError, OutputError
from blockswap.published import PUBLISHED
from blockswap.synth import synth

SMALL = replace(
    PUBLISHED["qwen-image"],
    config={
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "axes_dims_rope": (8, 4, 4),
    },
)
H3 = replace(
    PUBLISHED["minimax-h3"],
    config={
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "hidden_size": 24,
        "num_layers": 2,
        "ffn_dim": 32,
        "text_dim": 8,
        "freq_dim": 8,
        "time_embed_hidden_dim": 24,
        "time_embed_dim": 16,
        "rope_freq_dim": 2,
    },
)


def given() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(1, 12, 16, generator=draw).bfloat16(),
        "timestep": torch.tensor([0.5]).bfloat16(),
        "encoder_hidden_states": torch.randn(1, 5, 24, generator=draw).bfloat16(),
        "img_shapes": [[(1, 3, 4)]],
        "return_dict": False,
    }


@pytest.mark.parametrize("shard_bytes", [None, 50_000])
def test_a_folder_is_what_diffusers_and_the_engine_open(
    tmp_path: Path, shard_bytes: int | None
) -> None:
    from diffusers import QwenImageTransformer2DModel

    folder = tmp_path / "qwen"
    written = synth(SMALL, folder, shard_bytes=shard_bytes)
    assert (len(written.files) > 3) is (shard_bytes is not None)
    whole = QwenImageTransformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
    whole.requires_grad_(False)
    streamed: Any = open_transformer(folder, {"blocks_to_swap": 2}, device="cpu")
    with streamed.blockswap, torch.inference_mode():
        found = streamed(**given())[0]
        assert torch.equal(found, whole(**given())[0])
    assert found.isfinite().all()


def test_weights_do_not_depend_on_shards_and_differ_by_seed(tmp_path: Path) -> None:
    name = "diffusion_pytorch_model.safetensors"
    synth(SMALL, tmp_path / "a")
    synth(SMALL, tmp_path / "b", shard_bytes=50_000)
    synth(SMALL, tmp_path / "b", overwrite=True)
    synth(SMALL, tmp_path / "c", seed=1)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["config.json", name]
    one, same, other = (load_file(tmp_path / folder / name) for folder in "abc")
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)


def test_what_the_class_keeps_in_fp32_is_written_so(tmp_path: Path) -> None:
    synth(H3, tmp_path / "h3", dtype="float8_e4m3fn")
    stored = load_file(tmp_path / "h3" / "diffusion_pytorch_model.safetensors")
    assert stored["proj_in.weight"].dtype == torch.float32
    inside = [one for key, one in stored.items() if key.startswith("transformer_blocks.0.")]
    assert {one.dtype for one in inside} == {torch.float8_e4m3fn}
    config = json.loads((tmp_path / "h3" / "config.json").read_text())
    assert (config["_class_name"], config["num_layers"]) == ("MiniMaxH3Transformer3DModel", 2)


def test_what_it_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgsError, match="under the names of diffusers' class"):
        synth("qwen-image", tmp_path / "a", naming="original")
    with pytest.raises(OutputError, match=r"leave out \.safetensors"):
        synth(SMALL, tmp_path / "a.safetensors")
    with pytest.raises(ArgsError, match="did you mean 'qwen-image'"):
        synth("qwen-imag", tmp_path / "a")
    assert not any(tmp_path.iterdir())
