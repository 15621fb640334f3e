"""GGUF tensors of the wrapper pack: its own class, streamed as the bytes that they are.

The pack computes with a class that knows how its bytes are quantised and says nothing to torch of
what it consists of. While a model is streamed, a class beside it says so; between two runs of a
streamed block only the bytes hang there.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch


def _quantised(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    for name, tensor in list(module._parameters.items()):
        if hasattr(tensor, "quant_type") and hasattr(tensor, "as_tensor"):
            yield name, tensor


def say_what_they_are(undo: ExitStack, module: torch.nn.Module) -> None:
    """A tensor of a GGUF file becomes one that says what it consists of: its bytes."""
    for name, tensor in _quantised(module):
        kind = type(tensor)
        tensor.__class__ = described = _described(kind)
        undo.callback(_own_class, module, name, described, kind)


def _own_class(module: torch.nn.Module, name: str, described: type, kind: type) -> None:
    tensor: Any = module._parameters.get(name)
    if type(tensor) is described:
        tensor.__class__ = kind


_kinds: dict[type, type] = {}


def _described(kind: type) -> type:
    """A class beside the pack's own that torch can take apart and put together."""
    if kind not in _kinds:
        body = {
            "stored": property(lambda self: self.as_tensor()),
            "__tensor_flatten__": lambda self: (["stored"], _context(self)),
            "__tensor_unflatten__": staticmethod(_assembled),
        }
        _kinds[kind] = type(kind.__name__, (kind,), body)
    return _kinds[kind]


def _context(tensor: Any) -> tuple[type, Any]:
    """The pack's own class of a tensor, and how its bytes are quantised."""
    kind = next(cls for cls in type(tensor).__mro__ if cls not in _kinds.values())
    return kind, tensor.quant_type


def _assembled(parts: dict[str, torch.Tensor], context: Any, shape: Any, stride: Any) -> Any:
    kind, quant_type = context
    return kind(parts["stored"], quant_type=quant_type)


def on_host(tensor: Any) -> Any:
    """A GGUF tensor of the pack's own class in host memory."""
    return _assembled({"stored": tensor.as_tensor().cpu()}, _context(tensor), None, None)


def idle_forms(undo: ExitStack, module: torch.nn.Module) -> None:
    """Between two runs of a streamed unit only the bytes of its GGUF tensors are kept."""
    for part in module.modules():
        for name, tensor in _quantised(part):
            idle = StoredBytes.of(tensor.as_tensor(), *_context(tensor))
            part._parameters[name] = idle  # type: ignore[assignment]
            undo.callback(_rebuilt, part, name, idle)


def _rebuilt(module: torch.nn.Module, name: str, idle: "StoredBytes") -> None:
    if module._parameters.get(name) is idle:  # type: ignore[comparison-overlap]
        module._parameters[name] = idle.kind(idle.stored.data, quant_type=idle.quant_type)


def forget_quantised(module: torch.nn.Module) -> None:
    """Leaves empty places for the pack's loading to fill, as it leaves them at the end of a run."""
    for part in module.modules():
        for name, tensor in _quantised(part):
            empty = torch.empty(0, dtype=tensor.dtype, device="cpu")
            part._parameters[name] = torch.nn.Parameter(empty, requires_grad=False)


class StoredBytes(torch.Tensor):
    """Shape and dtype of a GGUF tensor while its block is not running, and its bytes beside it."""

    stored: torch.Tensor
    kind: Any
    quant_type: Any

    @classmethod
    def of(cls, stored: torch.Tensor, kind: type, quant_type: Any) -> "StoredBytes":
        made = torch.empty_like(stored, device="meta").as_subclass(cls)
        made.stored, made.kind, made.quant_type = stored, kind, quant_type
        return made

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["stored"], (self.kind, self.quant_type)

    @staticmethod
    def __tensor_unflatten__(
        parts: dict[str, torch.Tensor], context: Any, shape: Any, stride: Any
    ) -> Any:
        return _assembled(parts, context, shape, stride)
