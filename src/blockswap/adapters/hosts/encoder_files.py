"""T5 and UMT5 encoders in single files: other names, and the config and dtype that they tell."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from ...errors import GeometryError
from ...layout.checkpoint import Checkpoint
from ...layout.formats.main_dtype import main_dtype

Names = tuple[tuple[re.Pattern[str], str], ...]
# Names of Wan-Video's own encoder -> those of transformers (and of ComfyUI's files).
_VENDOR: Names = (
    (re.compile(r"^token_embedding\.weight$"), "shared.weight"),
    (re.compile(r"^norm\.weight$"), "encoder.final_layer_norm.weight"),
    (re.compile(r"^blocks\.(\d+)\.norm1\.weight$"), r"encoder.block.\1.layer.0.layer_norm.weight"),
    (re.compile(r"^blocks\.(\d+)\.norm2\.weight$"), r"encoder.block.\1.layer.1.layer_norm.weight"),
    (
        re.compile(r"^blocks\.(\d+)\.attn\.([qkvo])\.weight$"),
        r"encoder.block.\1.layer.0.SelfAttention.\2.weight",
    ),
    (
        re.compile(r"^blocks\.(\d+)\.pos_embedding\.embedding\.weight$"),
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    (
        re.compile(r"^blocks\.(\d+)\.ffn\.gate\.0\.weight$"),
        r"encoder.block.\1.layer.1.DenseReluDense.wi_0.weight",
    ),
    (
        re.compile(r"^blocks\.(\d+)\.ffn\.fc1\.weight$"),
        r"encoder.block.\1.layer.1.DenseReluDense.wi_1.weight",
    ),
    (
        re.compile(r"^blocks\.(\d+)\.ffn\.fc2\.weight$"),
        r"encoder.block.\1.layer.1.DenseReluDense.wo.weight",
    ),
)
# Names of llama.cpp's GGUF files -> those of transformers.
_BLOCK = r"^enc\.blk\.(\d+)\."
_LLAMA_CPP: Names = (
    (re.compile(r"^token_embd\.weight$"), "shared.weight"),
    (re.compile(r"^enc\.output_norm\.weight$"), "encoder.final_layer_norm.weight"),
    *(
        (re.compile(rf"{_BLOCK}{theirs}\.weight$"), rf"encoder.block.\1.layer.{ours}.weight")
        for theirs, ours in (
            ("attn_norm", "0.layer_norm"),
            ("attn_([qkvo])", r"0.SelfAttention.\2"),
            ("attn_rel_b", "0.SelfAttention.relative_attention_bias"),
            ("ffn_norm", "1.layer_norm"),
            ("ffn_gate", "1.DenseReluDense.wi_0"),
            ("ffn_up", "1.DenseReluDense.wi_1"),
            ("ffn_down", "1.DenseReluDense.wo"),
        )
    ),
)
LLAMA_CPP_SIGN = "enc.blk.0.attn_q.weight"
_BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"


def in_library_names(rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under transformers' names, if they had Wan-Video's or llama.cpp's."""
    if "token_embedding.weight" in rows:
        names = _VENDOR
    elif LLAMA_CPP_SIGN in rows:
        names = _LLAMA_CPP
    else:
        return dict(rows)
    renamed = {}
    for name, tensor in rows.items():
        new = next((p.sub(to, name) for p, to in names if p.match(name)), name)
        renamed[new] = tensor
    return renamed


def encoder_dtype(checkpoint: Checkpoint) -> str:
    """In which dtype an encoder computes when nobody says: that of most of the file's bytes.

    Packed by llama.cpp it is bfloat16, in which these models were trained: that program keeps in
    fp16 what it does not pack, and their activations leave fp16's range.
    """
    tensors = checkpoint.tensors
    if LLAMA_CPP_SIGN in tensors and any(t.packing is not None for t in tensors.values()):
        return "bfloat16"
    return main_dtype(tensors.values()) or "float32"


def t5_config(label: str, rows: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, Any]]:
    """Class and config.json of a T5 or UMT5 encoder with a gated GELU, from its shapes.

    Raises GeometryError for a file of anything else.
    """
    first = "encoder.block.0.layer."
    table, bias = rows.get("shared.weight"), rows.get(_BIAS.format(0))
    query = rows.get(f"{first}0.SelfAttention.q.weight")
    wide = rows.get(f"{first}1.DenseReluDense.wi_0.weight")
    if table is None or bias is None or query is None or wide is None:
        raise GeometryError(
            f"{label} is no T5 or UMT5 encoder with a gated feed-forward, and a single file of any "
            "other does not state its config: give config=, the folder of its config.json"
        )
    layers = 1 + max(int(m[1]) for n in rows if (m := re.match(r"encoder\.block\.(\d+)\.", n)))
    biased = sum(_BIAS.format(layer) in rows for layer in range(layers))
    heads = bias.shape[1]
    kind = "umt5" if biased == layers > 1 else "t5"
    return f"{kind.upper()}EncoderModel", {
        "model_type": kind,
        "vocab_size": table.shape[0],
        "d_model": table.shape[1],
        "d_kv": query.shape[0] // heads,
        "d_ff": wide.shape[0],
        "num_layers": layers,
        "num_heads": heads,
        "relative_attention_num_buckets": bias.shape[0],
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
    }
