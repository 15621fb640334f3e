"""A tiny configuration of every text encoder class that diffusers' pipelines name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

VOCABULARY = 4096 + 32
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def _t5(name: str) -> Any:
    import transformers as hf

    kind = getattr(hf, "UMT5Config" if name.startswith("UMT5") else "T5Config")
    return kind(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=256, num_layers=4, num_heads=4,
        feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip


def _plain(kind: str, **more: Any) -> Any:
    import transformers as hf

    return getattr(hf, kind)(**_TEXT, **more)


def _clip(kind: str, **more: Any) -> Any:
    import transformers as hf

    return getattr(hf, kind)(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=77, projection_dim=16, **more,
    )  # fmt: skip


def _qwen25_vl() -> Any:
    import transformers as hf

    vision = dict(
        depth=2, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=32,
        fullatt_block_indexes=[1], window_size=28,
    )  # fmt: skip
    return hf.Qwen2_5_VLConfig(text_config={**_TEXT, "rope_scaling": _ROPE}, vision_config=vision)


def _qwen3_vl() -> Any:
    import transformers as hf

    vision = dict(
        depth=2, hidden_size=32, intermediate_size=64, num_heads=4, out_hidden_size=32,
        deepstack_visual_indexes=[0], num_position_embeddings=16,
    )  # fmt: skip
    return hf.Qwen3VLConfig(text_config={**_TEXT, "rope_scaling": _ROPE}, vision_config=vision)


def _gemma3() -> Any:
    import transformers as hf

    vision = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=16, patch_size=4,
    )  # fmt: skip
    return hf.Gemma3Config(text_config=_TEXT, vision_config=vision, mm_tokens_per_image=4)


@dataclass(frozen=True)
class Encoder:
    """A class, its tiny configuration, its units by list, and whether its table is read by rows."""

    name: str
    config: Callable[[], Any]
    units: dict[str, int]  # units by the list that they stand in
    table: bool = True

    def build(self, seed: int = 0) -> torch.nn.Module:
        import transformers as hf

        torch.manual_seed(seed)
        model = getattr(hf, self.name)(self.config()).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # norms are ones, biases are zeros as made
                parameter.add_(torch.randn_like(parameter) * 0.02)
        return model


ENCODERS = {
    e.name: e
    for e in (
        Encoder("T5EncoderModel", lambda: _t5("T5"), {"encoder.block": 4}),
        Encoder("UMT5EncoderModel", lambda: _t5("UMT5"), {"encoder.block": 4}),
        Encoder("CLIPTextModel", lambda: _clip("CLIPTextConfig"), {}),
        Encoder("CLIPTextModelWithProjection", lambda: _clip("CLIPTextConfig"), {}),
        Encoder("LlamaModel", lambda: _plain("LlamaConfig"), {"layers": 4}),
        Encoder("LlamaForCausalLM", lambda: _plain("LlamaConfig"), {"model.layers": 4}),
        Encoder("Qwen2Model", lambda: _plain("Qwen2Config"), {"layers": 4}),
        Encoder("Qwen3Model", lambda: _plain("Qwen3Config"), {"layers": 4}),
        Encoder("Qwen3ForCausalLM", lambda: _plain("Qwen3Config"), {"model.layers": 4}),
        Encoder("Gemma2Model", lambda: _plain("Gemma2Config"), {"layers": 4}),
        Encoder("Gemma3TextModel", lambda: _plain("Gemma3TextConfig"), {"layers": 4}),
        Encoder("Gemma3ForConditionalGeneration", _gemma3, {}, table=False),
        Encoder("Qwen2_5_VLForConditionalGeneration", _qwen25_vl, {}),
        Encoder("Qwen3VLForConditionalGeneration", _qwen3_vl, {}),
    )
}  # fmt: skip


def prompt(seed: int = 0, length: int = 12) -> dict[str, torch.Tensor]:
    """Token ids [2, length] and their mask."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (2, length), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def encode(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """All hidden states and the last output, on the CPU."""
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    found = [value for value in out.values() if isinstance(value, torch.Tensor)]
    return [value.cpu() for value in (*found, *(out.hidden_states or ()))]


def same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    """Whether all outputs are equal to the last bit."""
    return len(found) == len(wanted) and all(map(torch.equal, found, wanted))
