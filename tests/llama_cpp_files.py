"""Text encoders as llama.cpp writes them to GGUF: its names, its types, its tokenizer's entries."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

_NAMES = (
    ("shared", "token_embd"),
    ("encoder.final_layer_norm", "enc.output_norm"),
    ("layer.0.layer_norm", "attn_norm"),
    ("layer.1.layer_norm", "ffn_norm"),
    ("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"),
    ("layer.0.SelfAttention.", "attn_"),
    ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
    ("layer.1.DenseReluDense.wi_1", "ffn_up"),
    ("layer.1.DenseReluDense.wo", "ffn_down"),
    ("encoder.block.", "enc.blk."),
)


def llama_cpp_name(name: str) -> str:
    for theirs, new in _NAMES:
        name = name.replace(theirs, new)
    return name


def write_encoder(path: Path, model: Any, kind: str, words: Any = None) -> dict[str, torch.Tensor]:
    """A T5 or UMT5 encoder with matrices of `kind` ("Q8_0", "F16"); what the file means, in fp32.

    `words` are (pieces, scores, kinds, charsmap) of a tokenizer, written as llama.cpp does.
    """
    writer = gguf.GGUFWriter(path, "t5encoder")
    writer.add_layer_norm_rms_eps(1e-6)
    if words is not None:
        _add_tokenizer(writer, *words)
    packed, means = getattr(gguf.GGMLQuantizationType, kind), {}
    for name, weight in model.state_dict().items():
        if "embed_tokens" in name:
            continue
        numbers, new = weight.float().numpy(), llama_cpp_name(name)
        if weight.dim() == 1:
            writer.add_tensor(new, numbers)
            means[name] = weight.float()
            continue
        own = gguf.GGMLQuantizationType.F16 if "relative_attention" in name else packed
        raw = gguf.quants.quantize(numbers, own)
        writer.add_tensor(new, raw, raw_dtype=own)
        found = gguf.quants.dequantize(raw, own).astype(np.float32)
        means[name] = torch.from_numpy(found.copy())
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return means


def _add_tokenizer(
    writer: Any, pieces: list[str], scores: list[float], kinds: list[int], charsmap: bytes
) -> None:
    writer.add_tokenizer_model("t5")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_unk_token_id(pieces.index("<unk>"))
    writer.add_eos_token_id(pieces.index("</s>"))
    writer.add_pad_token_id(pieces.index("<pad>"))
    if charsmap:
        writer.add_precompiled_charsmap(charsmap)
