"""What one call of a model needs on the device, followed on meta tensors from its real inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call

from ..errors import ModelError
from ..plan.inputs.workload import KernelSet
from ..predict.module import record_call
from ..predict.recorder import Recorder, to_meta
from ..predict.untouched import left_untouched, without_users_hooks


class _Calling(torch.nn.Module):
    """A module whose forward is a method of another one's class."""

    def __init__(self, inner: torch.nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.inner, self._method = inner, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(self.inner, *args, **kwargs)


@dataclass(frozen=True, slots=True)
class Followed:
    """`nbytes` are alive at most beside weights and inputs; `output` is on the meta device."""

    nbytes: int
    output: Any


def follow_call(
    model: torch.nn.Module,
    method: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    where: str,
) -> Followed | None:
    """What a call on a device of kind `where` takes and gives; None where it cannot be followed.

    That is so where the forward asks for values, or where torch has no meta kernel for a step.
    Encoders look whether a mask of the padding leaves all out: they are given the square one that
    they make of it.
    """
    found = _followed(model, method, args, kwargs, where)
    squared = _with_square_mask(args, kwargs)
    if found is None and squared is not None:
        found = _followed(model, method, *squared, where)
    return found


def _followed(
    model: torch.nn.Module,
    method: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    where: str,
) -> Followed | None:
    calling = _Calling(model, method)
    tensors = [*calling.named_parameters(), *calling.named_buffers()]
    state = {name: to_meta(tensor) for name, tensor in tensors}
    recorder = Recorder(state.values(), on_host=where == "cpu")
    kernels: KernelSet = "cuda" if where == "cuda" else "portable"

    outputs: list[Any] = []

    def call(*given: Any, **named: Any) -> Any:
        outputs.append(functional_call(calling, state, given, named))
        return outputs[-1]

    with left_untouched(model, (args, kwargs)):
        without_users_hooks(model)
        try:
            cost = record_call(
                recorder, call, (tuple(args), dict(kwargs)),
                label=type(model).__name__, kernels=kernels,
            )  # fmt: skip
        except (ModelError, TypeError, ValueError, AttributeError, IndexError, KeyError):
            return None
    return Followed(cost.activation_bytes - cost.input_bytes, outputs[-1])


def _with_square_mask(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]] | None:
    """The inputs with `[batch, 1, tokens, tokens]` for a mask of tokens; None without one."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if not isinstance(ids, torch.Tensor) or not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return None
    batch, tokens = ids.shape
    square = torch.ones(batch, 1, tokens, tokens, dtype=torch.bool, device="meta")
    if "attention_mask" in kwargs:
        return args, {**kwargs, "attention_mask": square}
    return (args[0], square, *args[2:]), kwargs
