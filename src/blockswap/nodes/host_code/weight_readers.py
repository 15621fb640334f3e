"""The host's modules that read the weight of a part and multiply themselves, past the part's call.

Newer cores do so to fold an activation into an int8 product, or two norms into one function. What
hooks hang into such a part while it is called would never be seen.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .words import words_of

_FOLDS, _CASTS = "linear_input_act", "cast_bias_weight"
_FOLDED = "TensorWiseINT8Layout"  # other weights' layers are called


def read_parts(modules: Iterable[torch.nn.Module]) -> Iterator[tuple[Any, Any]]:
    """(module, part) where the forward of `module` may read the weight of the part."""
    for module in modules:
        words = words_of(type(module).forward)
        for part in module.modules() if _FOLDS in words or _CASTS in words else ():
            if part is not module and (_CASTS in words or _is_folded(part)):
                yield module, part


def _is_folded(part: torch.nn.Module) -> bool:
    weight: Any = part._parameters.get("weight")
    return getattr(weight, "_layout_cls", None) == _FOLDED
