"""Memory that fused attention and RMS norms take on a real device, where meta would differ.

On meta torch takes every composite operation apart, as it does on a device without a kernel for
it. Where the device has one, the composite is replaced by its allocations:

    attention  flash, memory-efficient, cuDNN, and the simulated accelerator's: the output in the
               query's layout, and log-sum-exp [batch, heads, tokens] in fp32. "math" is left to
               torch, which upcasts and makes [batch, heads, tokens, tokens] two or three times
    RMS norm   CUDA: the output, and 1 / rms in fp32 for each row (`_fused_rms_norm`, torch 2.9).
               With a weight of another dtype than the input torch composes it there, too
"""

import math
import re
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..plan.inputs.workload import AttentionKind, KernelSet
from .recorder import Recorder

_DEVICE_NAME = re.compile(r"(cuda|xpu|mps|hpu|npu|xla|privateuseone)(:\d+)?")
_READ = frozenset({torch.Tensor.tolist, torch.Tensor.numpy})
_RMS_NORMS = frozenset({F.rms_norm, torch.rms_norm})


class Kernels(TorchFunctionMode):
    """Replaces attention and RMS norms by what the device's kernels allocate and compute.

    Names of accelerators become meta here already: torch would start CUDA to read "cuda".
    """

    def __init__(self, recorder: Recorder, *, attention: AttentionKind, kernels: KernelSet) -> None:
        super().__init__()
        self._recorder = recorder
        self._flash = attention == "flash"
        self._fused_norms = kernels == "cuda"

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {name: _without_device(value) for name, value in (kwargs or {}).items()}
        if func is torch.Tensor.cuda:
            return args[0].to("meta")
        if func in _READ and (value := self._recorder.known.of(args[0])) is not None:
            return func(value, *args[1:], **kwargs)
        if func is torch.Tensor.to:
            args = tuple(map(_without_device, args))
        if func is F.scaled_dot_product_attention:
            return (self._attend if self._flash else _attend_by_products)(*args, **kwargs)
        if self._fused_norms and func in _RMS_NORMS:
            fused = _rms_norm(*args, **kwargs)
            if fused is not None:
                return fused
        return func(*args, **kwargs)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> torch.Tensor:
        """`[batch, heads, tokens, head_dim]` each -> the same as `query`.

        A mask of yes and no becomes one that is added, in the query's dtype, before the kernel.
        """
        self._recorder.add_attention_flops(_attention_flops(query, key, value))
        added = None
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            added = torch.empty(attn_mask.shape, dtype=query.dtype, device=query.device)
        if value.shape[-1] == query.shape[-1]:
            output = torch.empty_like(query)
        else:
            output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        # Alive beside the output until the kernel is done.
        logsumexp = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        del logsumexp, added
        return output


def _without_device(value: Any) -> Any:
    """An accelerator becomes meta, whether it is a device or named; anything else stays."""
    if isinstance(value, str) and _DEVICE_NAME.fullmatch(value):
        return "meta"
    if isinstance(value, torch.device) and value.type != "cpu":
        return torch.device("meta")
    return value


def _attention_flops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> int:
    """One product with the keys, one with the values; 2 FLOPs a multiply-add."""
    pairs = query.numel() // query.shape[-1] * key.shape[-2]
    return 2 * pairs * (query.shape[-1] + value.shape[-1])


def _attend_by_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> torch.Tensor:
    by_products: Any = torch.ops.aten._scaled_dot_product_attention_math
    result: torch.Tensor = by_products(
        query, key, value, attn_mask, dropout_p, is_causal, **options
    )[0]
    return result


def _rms_norm(
    input: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor | None:
    """What the fused kernel leaves; None where torch does not take it."""
    if weight is not None and weight.dtype != input.dtype:
        return None
    rows = math.prod(input.shape[: input.dim() - len(normalized_shape)])
    source = input.contiguous()
    output = torch.empty_like(source)
    rstd = torch.empty((rows,), dtype=torch.float32, device=input.device)
    del rstd, source
    return output
