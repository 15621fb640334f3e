"""Models of transformers that no pipeline of diffusers names: from RAM and from their folder."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from blockswap import open_text_encoder, swap_blocks
from blockswap.adapters.live import describe_module
from blockswap.errors import ModelError

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_WORDS = {"vocab_size": 600, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLM = {**_SIZES, **_WORDS, "num_key_value_heads": 2}
_BERT = {**_SIZES, "vocab_size": 600, "max_position_embeddings": 64}
_EYE = {**_SIZES, "image_size": 16, "patch_size": 4}
_BOTH = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
_PIXTRAL = {**_EYE, "model_type": "pixtral", "num_hidden_layers": 2}
# Class, class of its config, the config, and how many units each of its lists has.
OTHERS: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "MistralModel": ("MistralConfig", {**_LLM, "head_dim": 8}, {"layers": 3}),
    "Mistral3ForConditionalGeneration": (
        "Mistral3Config",
        {"text_config": {**_LLM, "model_type": "mistral"}, "vision_config": _PIXTRAL},
        {"model.vision_tower.transformer.layers": 2, "model.language_model.layers": 3},
    ),
    "Llama4ForCausalLM": (
        "Llama4TextConfig",
        {**_LLM, "head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2},
        {"model.layers": 3},
    ),
    # Its file holds experts one by one, the class their gates and ups joined for each expert.
    "MixtralModel": ("MixtralConfig", {**_LLM, "num_local_experts": 4}, {"layers": 3}),
    "Phi3Model": ("Phi3Config", _LLM, {"layers": 3}),
    "GPT2Model": (
        "GPT2Config",
        {"vocab_size": 600, "n_embd": 32, "n_layer": 3, "n_head": 4},
        {"h": 3},
    ),
    "BertModel": ("BertConfig", _BERT, {"encoder.layer": 3}),
    "ModernBertModel": (
        "ModernBertConfig",
        {**_BERT, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2},
        {"layers": 3},
    ),
    "SiglipTextModel": ("SiglipTextConfig", _BERT, {"encoder.layers": 3}),
    "SiglipVisionModel": ("SiglipVisionConfig", _EYE, {"encoder.layers": 3}),
    "Dinov2Model": ("Dinov2Config", _EYE, {"encoder.layer": 3}),
    "WhisperModel": (
        "WhisperConfig",
        {
            **_BOTH, "vocab_size": 600, "num_mel_bins": 8, "max_source_positions": 16,
            "max_target_positions": 16, "pad_token_id": 0, "decoder_start_token_id": 1,
        },
        {"encoder.layers": 2, "decoder.layers": 3},
    ),
    "MambaModel": (
        "MambaConfig",
        {"vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4},
        {"layers": 3},
    ),
}  # fmt: skip


def given(name: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 600, (2, 12), generator=draw)
    if name in ("SiglipVisionModel", "Dinov2Model"):
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=draw)}
    if name == "WhisperModel":
        heard = torch.randn(2, 8, 32, generator=draw)
        return {"input_features": heard, "decoder_input_ids": ids}
    return {"input_ids": ids}


def tensors(model: torch.nn.Module, name: str) -> list[torch.Tensor]:
    with torch.no_grad():
        out = model(**given(name))
    return [value for value in out.values() if isinstance(value, torch.Tensor)]


def build(name: str) -> torch.nn.Module:
    import transformers as hf

    torch.manual_seed(0)
    config = getattr(hf, OTHERS[name][0])(**OTHERS[name][1])
    model: torch.nn.Module = getattr(hf, name)(config).eval().requires_grad_(False)
    return model


@pytest.mark.parametrize("name", OTHERS)
def test_any_class_with_layers(name: str, tmp_path: Path) -> None:
    model = build(name)
    blocks = Counter(unit.list_name for unit in describe_module(model).layout.units)
    assert blocks == OTHERS[name][2]
    wanted = tensors(model, name)
    with swap_blocks(model, {"blocks_to_swap": 2}, device="cpu"):
        assert all(map(torch.equal, tensors(model, name), wanted))
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    # A library's own loader: it may join weights otherwise than the constructor lays them out.
    whole = type(model).from_pretrained(tmp_path).eval().requires_grad_(False)  # type: ignore[attr-defined]
    streamed: Any = open_text_encoder(tmp_path, {"blocks_to_swap": 2}, device="cpu")
    with streamed.blockswap as swap:
        assert len(swap.plan.streamed) == 2
        found, wanted = tensors(streamed, name), tensors(whole, name)
        assert len(found) == len(wanted)
        assert all(map(torch.equal, found, wanted))


def test_one_layer_that_runs_again_and_again_is_no_list() -> None:
    import transformers as hf

    config = hf.AlbertConfig(**_BERT, embedding_size=16)
    with pytest.raises(ModelError, match="AlbertModel has no transformer blocks"):
        swap_blocks(hf.AlbertModel(config).eval(), {"blocks_to_swap": 2}, device="cpu")
