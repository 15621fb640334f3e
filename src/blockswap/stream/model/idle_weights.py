"""What idle weights of a unit on disk allow (a look at shape or dtype) and refuse (computing).

A meta tensor has shape and dtype and no values, and torch computes with one beside real tensors
without an error (`linear(cpu, meta)` gives what lay in memory). So an idle one says whose it is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ...errors import StateError
from .hooks import Uncopyable

# Functions of torch that look at a tensor and not at its values.
_LOOKS = frozenset(
    {
        "__get__", "__set__", "__delete__", "__repr__", "__format__", "__hash__", "__len__",
        "size", "dim", "ndimension", "numel", "nelement", "element_size", "stride",
        "storage_offset", "untyped_storage", "data_ptr", "detach", "requires_grad_", "get_device",
        "is_contiguous", "is_floating_point", "is_complex", "is_signed", "is_inference",
        "register_hook", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like",
        "randn_like",
    }
)  # fmt: skip


# The device that idle weights are said to be on, while a library asks where to put what it adds.
_seen_on: list[torch.device] = []


@contextmanager
def seen_on(device: torch.device) -> Iterator[None]:
    """While a library puts what it adds to a layer where the layer's weight is."""
    _seen_on.append(device)
    try:
        yield
    finally:
        _seen_on.pop()


# Of these, what gives the same tensor again.
_SAME = frozenset({"__get__", "detach"})


class _Idle(Uncopyable):
    """Refuses every function of torch but looks; what a look hands on without data is idle, too."""

    blockswap_label: str

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        label = next(
            (a.blockswap_label for a in _flat(args, kwargs) if isinstance(a, _Idle)), "a weight"
        )
        if name not in _LOOKS or (name == "__set__" and _property(func) == "data"):
            raise StateError(
                f"{label} was used ({name}) while its block is not running, and its data is in the "
                "checkpoint only: run the block itself, or load the model and use swap_blocks"
            )
        if _seen_on and name == "__get__" and _property(func) == "device":
            return _seen_on[-1]
        with torch._C.DisableTorchFunctionSubclass():
            seen = func(*args, **(kwargs or {}))
        if name in _SAME and type(seen) is torch.Tensor:
            _become(seen, IdleTensor, label)
        return seen

    def __reduce_ex__(self, protocol: Any) -> Any:  # torch's own would be asked first
        return self.__reduce__()


class IdleTensor(_Idle, torch.Tensor):
    """What `.data` or `.detach()` of an idle parameter gives."""


class IdleParameter(_Idle, torch.nn.Parameter):
    """A parameter on meta that is computed with only while its unit runs, as another object."""


def mark_idle(undo: ExitStack, parameters: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Makes (label, parameter) pairs on meta say whose they are; the objects stay the same."""
    for label, parameter in parameters:
        if type(parameter) is torch.nn.Parameter and parameter.is_meta:
            undo.callback(_unmark, parameter)
            _become(parameter, IdleParameter, label)


def _become(tensor: torch.Tensor, idle: type[torch.Tensor], label: str) -> None:
    tensor.__class__ = idle
    vars(tensor)["blockswap_label"] = label


def _unmark(parameter: torch.Tensor) -> None:
    if isinstance(parameter, IdleParameter):
        del vars(parameter)["blockswap_label"]
        parameter.__class__ = torch.nn.Parameter  # type: ignore[assignment]


def _property(func: Callable[..., Any]) -> str:
    """The property that a getter or setter is for."""
    return str(getattr(getattr(func, "__self__", None), "__name__", ""))


def _flat(args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> Iterable[Any]:
    for value in (*args, *(kwargs or {}).values()):
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value
