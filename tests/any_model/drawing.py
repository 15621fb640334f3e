"""Inputs of tiny models as data: what is drawn for each argument of a forward."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Draw = Callable[[torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Tiny:
    """A class of diffusers made small: its configuration, one forward's arguments, its units.

    `units`: how many blocks of which list are units.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, Any]
    units: Mapping[str, int]


def noise(*shape: int) -> Draw:
    return lambda draw: torch.randn(*shape, generator=draw)


def whole(high: int, *shape: int) -> Draw:
    return lambda draw: torch.randint(0, high, shape, generator=draw)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Draw:
    return lambda draw: torch.ones(*shape, dtype=dtype)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Draw:
    return lambda draw: torch.zeros(*shape, dtype=dtype)


def value(content: Any, dtype: torch.dtype | None = None) -> Draw:
    return lambda draw: torch.tensor(content, dtype=dtype)


def grid(*sizes: int) -> Draw:
    """Every position of a grid, `[positions, axes]`."""
    return lambda draw: torch.cartesian_prod(*(torch.arange(size) for size in sizes))


def drawn(inputs: Mapping[str, Any], device: torch.device, *, seed: int) -> dict[str, Any]:
    """The arguments on a device; equal for equal seeds."""
    draw = torch.Generator().manual_seed(seed)
    return {name: _on(wanted, device, draw) for name, wanted in inputs.items()}


def _on(wanted: Any, device: torch.device, draw: torch.Generator) -> Any:
    if callable(wanted):
        made = wanted(draw)
        return made.to(device) if isinstance(made, torch.Tensor) else made
    if isinstance(wanted, (list, tuple)):
        return type(wanted)(_on(one, device, draw) for one in wanted)
    if isinstance(wanted, dict):
        return {key: _on(one, device, draw) for key, one in wanted.items()}
    return wanted
