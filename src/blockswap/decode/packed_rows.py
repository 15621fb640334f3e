"""Rows of a packed table: which packings have rows that stand alone, and decoding some of them."""

from dataclasses import replace

import torch

from .gguf_blocks import GgufBlocks
from .unit_decoding import LeafForm, decoded_on_host, stored_leaf


def bytes_of_rows(form: LeafForm) -> tuple[int, int] | None:
    """How many rows of how many bytes a packed matrix is; None where a row cannot be decoded alone.

    GGML's blocks stand alone, and a row is a whole number of them.
    """
    blocks = _blocks(form)
    if blocks is None or len(form.computed.shape) != 2:
        return None
    rows = form.computed.shape[0]
    return None if blocks.blocks.shape[0] % rows else (rows, blocks.blocks.nbytes // rows)


def decode_rows(form: LeafForm, packed: torch.Tensor) -> torch.Tensor:
    """Rows of bytes on the host, uint8 `[n, row_bytes]` -> `[n, width]`, as the form decodes."""
    blocks = _blocks(form)
    assert blocks is not None, "asked for by whoever got bytes_of_rows"
    raw = packed.reshape(-1, blocks.blocks.shape[1])
    computed = stored_leaf(form.computed.dtype, (packed.shape[0], form.computed.shape[1]))
    if not packed.shape[0]:
        return torch.empty(computed.shape, dtype=getattr(torch, computed.dtype), device="cpu")
    stored = stored_leaf("uint8", (raw.shape[0], raw.shape[1]))
    step = replace(blocks, blocks=stored, computed=computed)
    return decoded_on_host(LeafForm((stored,), computed, (step,)), [raw])


def _blocks(form: LeafForm) -> GgufBlocks | None:
    (step,) = form.steps if len(form.steps) == 1 else (None,)
    return step if isinstance(step, GgufBlocks) else None
