"""Which compiled blocks a swapped model refuses: those that replay CUDA graphs.

A CUDA graph reads weights at the addresses they had when it was captured, and a streamed block's
weights are in another slot at its next visit: torch would capture a graph for each, or give up.
"""

from collections.abc import Iterable
from typing import Any

import torch

from ...adapters.compiled import compile_context
from ...errors import StateError

_KEY = "triton.cudagraphs"
_BACKEND = "cudagraphs"


def refuse_cuda_graphs(modules: Iterable[torch.nn.Module], label: str) -> None:
    """Raises StateError where one of `modules` was compiled in a mode that captures CUDA graphs."""
    for module in modules:
        context = compile_context(module)
        if context is not None and _captures(context):
            raise StateError(
                f"a {type(module).__name__} of {label} was compiled with CUDA graphs "
                '(mode="reduce-overhead" or "max-autotune"), which replay the addresses of '
                "weights, and those of streamed blocks change: compile it without, as in "
                'mode="max-autotune-no-cudagraphs"'
            )


def _captures(context: Any) -> bool:
    config = getattr(context, "compiler_config", None) or {}
    if config.get(_KEY):
        return True
    backend = getattr(context, "callback", None)
    for _ in range(8):  # wrappers around the backend that was named
        if getattr(backend, "compiler_name", None) == _BACKEND:
            return True
        backend = getattr(backend, "_torchdynamo_orig_backend", None)
    return False
