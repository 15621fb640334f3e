"""A model in use without its weights: the same classes and sizes on meta, for a forward to follow.

Its own weights may be anywhere, or streamed; hooks, patches and whatever else hangs on it is left
out. In pieces and whole, what is alive in one block is gone when the next begins, so a few will do.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from ..adapters.families import WAN_LISTS

_BLOCKS = 3
# Notes of a host on a layer: patches of a weight that it applies when the layer is called.
_NOTES = ("weight_function", "bias_function")


def shell_of(
    root: torch.nn.Module,
    dtype: torch.dtype,
    layer_of: Callable[[Any], torch.nn.Module | None] = lambda _: None,
) -> Any:
    """The model with the first few of its blocks; weights in whole numbers come as `dtype`.

    `layer_of` gives a part's stand-in, or None for the usual shell.
    """
    shell: Any = _shell(root, dtype, layer_of)
    vars(shell).pop("blockswap", None)  # nothing is streamed in it
    for path in WAN_LISTS:
        listed = getattr(shell, path, None)
        if isinstance(listed, torch.nn.ModuleList):
            setattr(shell, path, listed[:_BLOCKS])
    return shell


def _shell(module: torch.nn.Module, dtype: torch.dtype, layer_of: Any) -> torch.nn.Module:
    stand_in: torch.nn.Module | None = layer_of(module)
    if stand_in is not None:
        return stand_in
    made: torch.nn.Module = type(module).__new__(type(module))
    torch.nn.Module.__init__(made)
    own = vars(made)
    for name, value in vars(module).items():
        if name not in own and not _stands_in(module, name, value):
            own[name] = [] if name in _NOTES else value
    own["training"] = module.training
    for table in ("_parameters", "_buffers"):
        found = {name: _without_data(value, dtype) for name, value in vars(module)[table].items()}
        own[table] = type(own[table])(found)
    modules = OrderedDict(
        (name, None if part is None else _shell(part, dtype, layer_of))
        for name, part in vars(module)["_modules"].items()
    )
    own["_modules"] = type(own["_modules"])(modules)
    return made


def _stands_in(module: torch.nn.Module, name: str, value: object) -> bool:
    """Whether an attribute stands in front of a method of the class: a wrapper, or a guard."""
    return callable(value) and callable(getattr(type(module), name, None))


def _without_data(tensor: Any, dtype: torch.dtype) -> Any:
    if not isinstance(tensor, torch.Tensor):
        return tensor
    kept = tensor.dtype if tensor.dtype.is_floating_point else dtype
    empty = torch.empty(tuple(tensor.shape), dtype=kept, device="meta")
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(empty, requires_grad=False)
    return empty
