"""Wan's text encoder, UMT5-XXL: its sizes, and its peak bytes and FLOPs by formula."""

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import ArgsError
from .phase import SLOTS, PhaseCost

TextEncoderDtype = Literal["bfloat16", "float16", "float32", "float8"]
_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float8": 2}  # of what is computed


@dataclass(frozen=True, slots=True)
class TextEncoderGeometry:
    """An encoder of T5's kind with a relative position bias in every layer and a gated GELU."""

    vocabulary: int
    dim: int
    attention_dim: int
    ffn_dim: int
    heads: int
    layers: int
    buckets: int

    @property
    def embedding_parameters(self) -> int:
        """Of the vocabulary, the position biases and the norms: what fp8 files leave as it is."""
        norms = (2 * self.layers + 1) * self.dim
        return self.vocabulary * self.dim + self.layers * self.buckets * self.heads + norms

    @property
    def layer_rest_parameters(self) -> int:
        """Of one layer beside its matrices: position bias and two norms."""
        return self.buckets * self.heads + 2 * self.dim

    @property
    def linear_parameters(self) -> int:
        """Of the matrices: q, k, v, o, and three of the feed-forward."""
        return self.layers * self.dim * (4 * self.attention_dim + 3 * self.ffn_dim)


# Source: `umt5_xxl` in wan/modules/t5.py of Wan-Video/Wan2.1; google/umt5-xxl has the same numbers.
# 5,680,910,336 parameters, 11.4 GB in bf16.
UMT5_XXL = TextEncoderGeometry(
    vocabulary=256384,
    dim=4096,
    attention_dim=4096,
    ffn_dim=10240,
    heads=64,
    layers=24,
    buckets=32,
)


def predict_text_encoder(
    *,
    tokens: int = 512,
    batch: int = 1,
    dtype: TextEncoderDtype = "bfloat16",
    geometry: TextEncoderGeometry = UMT5_XXL,
) -> PhaseCost:
    """What encoding `batch` prompts of `tokens` tokens needs; they are encoded padded to 512.

    "float8": matrices in fp8, embeddings and norms in 16 bits, as the files that ComfyUI uses;
    computed in 16 bits. The peak is that of Wan-Video's own attention, where the scores
    `[batch, heads, tokens, tokens]` exist as scores and mask in the compute dtype beside the
    position bias, and are upcast for a softmax in fp32; transformers 5 needs half of it. Raises
    ArgsError.
    """
    if dtype not in get_args(TextEncoderDtype):
        raise ArgsError(
            f"dtype={dtype!r} of the text encoder is unknown: use one of "
            f"{', '.join(get_args(TextEncoderDtype))}"
        )
    g, item = geometry, _ITEM_BYTES[dtype]
    stored = 1 if dtype == "float8" else item
    square = g.heads * tokens * tokens
    hidden_bytes = batch * tokens * g.dim * item
    # Residual, its norm, q, k and v; then the scores.
    attention_bytes = 5 * hidden_bytes + (2 * batch + 1) * square * item
    attention_bytes += batch * square * 4 * (1 if item == 4 else 2)
    # Six of the wide ones: GELU is spelled out.
    feed_forward_bytes = 2 * hidden_bytes + 6 * batch * tokens * g.ffn_dim * item
    layer_linear = g.linear_parameters // g.layers
    layer_bytes = layer_linear * stored + g.layer_rest_parameters * item
    # Of the vocabulary only the rows of the prompt come; fp8 is made 16 bits behind a block's slot.
    rows_bytes = (batch * tokens + 1) * g.dim * item
    decoded_bytes = layer_linear * item if stored < item else 0
    scores_flops = 4 * batch * tokens * tokens * g.attention_dim * g.layers
    return PhaseCost(
        weight_bytes=g.embedding_parameters * item + g.linear_parameters * stored,
        activation_bytes=max(attention_bytes, feed_forward_bytes),
        output_bytes=hidden_bytes,
        flops=2 * batch * tokens * g.linear_parameters + scores_flops,
        streamed_bytes=min(SLOTS, g.layers) * layer_bytes + decoded_bytes + rows_bytes,
    )
