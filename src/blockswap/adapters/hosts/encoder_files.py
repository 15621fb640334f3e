"""T5 and UMT5 encoders in single files: the vendor's names, and the config that shapes tell."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from ...errors import GeometryError

# Names of Wan-Video's own encoder -> those of transformers (and of ComfyUI's files).
_NAMES = (
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
_BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"


def in_library_names(rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under transformers' names, if they had Wan-Video's; else as they are."""
    if "token_embedding.weight" not in rows:
        return dict(rows)
    renamed = {}
    for name, tensor in rows.items():
        new = next((p.sub(to, name) for p, to in _NAMES if p.match(name)), name)
        renamed[new] = tensor
    return renamed


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
