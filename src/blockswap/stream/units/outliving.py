"""Weights that outlive their unit's run: what a block returns is copied, who keeps one is named.

A slot's memory is other units' next. A weight, or a view of one, that a block hands on or keeps is
noticed by a count: the engine knows how often it refers to a slot's tensors itself.
"""

import copy
import dataclasses
import gc
from collections.abc import Callable, Iterable, Sequence
from sys import getrefcount
from typing import Any

import torch

from ...store.leaves import leaf_tensors
from ..pool.run import Run

# Private, and the only way to see a view that somebody holds; without it a weight itself is seen.
_uses: Callable[[int], int] = getattr(torch._C, "_storage_Use_Count", lambda _: 0)
_DEEPEST = 8  # containers in each other: some contain themselves


class Users:
    """Who refers to some tensors, as a number that only a new reference raises."""

    __slots__ = ("_asked", "_storages", "_tensors")

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        leaves = [leaf for tensor in tensors for _, leaf in leaf_tensors(tensor)]
        self._tensors = tuple({id(one): one for one in (*tensors, *leaves)}.values())
        self._asked = False  # whether other keepers were looked for, which takes a while
        self._storages = tuple({leaf.untyped_storage()._cdata for leaf in leaves})

    def count(self) -> int:
        return sum(map(getrefcount, self._tensors)) + sum(map(_uses, self._storages))

    def after(
        self, run: Run, output: Any, sentences: list[str], spoiled: str | None
    ) -> tuple[Any, str | None]:
        """What a run has returned, without these tensors; why no forward is right any more.

        Who keeps one is told once among the `sentences`. A module of the unit that does will
        compute with it, and that is refused.
        """
        if output is None or self.count() <= run.users:
            return output, spoiled  # of a failed forward the frames hold what they had
        instead = self.apart(output)
        if any(map(_looks_anew, run.module.modules())):
            return instead, spoiled
        attribute = self.kept_by(run.module)
        if attribute is not None:
            return instead, (
                f"{run.name} keeps a weight, or a view of one, in its {attribute}, and its weights "
                "leave when its forward ends: leave that block out of `blocks`, so that it stays"
            )
        if instead is output and not self._asked:
            self._asked = True
            gc.collect()  # of what is not needed any more some waits in circles for this
            kept = self.count() > run.users
            if kept and not any(sentence.endswith(_KEPT) for sentence in sentences):
                sentences.append(f"a weight of {run.name}, or a view of one, {_KEPT}")
        return instead, spoiled

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is one of them, or a view of their memory."""
        return any(_storage(leaf) in self._storages for _, leaf in leaf_tensors(tensor))

    def apart(self, output: Any, depth: int = _DEEPEST) -> Any:
        """What a block returned, with copies in the place of the tensors; itself without any."""
        if isinstance(output, torch.Tensor):
            return _copied(output) if self.has(output) else output
        if depth and isinstance(output, dict):
            return self._dictionary_apart(output, depth - 1)
        if depth and isinstance(output, (tuple, list)):
            return self._sequence_apart(output, depth - 1)
        if depth and dataclasses.is_dataclass(output) and not isinstance(output, type):
            return self._value_apart(output, depth - 1)
        return output

    def _sequence_apart(self, output: Sequence[Any], depth: int) -> Any:
        parts, kind = [self.apart(part, depth) for part in output], type(output)
        if _same(parts, output):
            return output
        return kind(*parts) if hasattr(output, "_fields") else kind(parts)  # type: ignore[call-arg]

    def _dictionary_apart(self, output: dict[Any, Any], depth: int) -> Any:
        parts = {key: self.apart(part, depth) for key, part in output.items()}
        if _same(parts.values(), output.values()):
            return output
        made = copy.copy(output)
        for key, part in parts.items():
            made[key] = part
        return made

    def _value_apart(self, output: Any, depth: int) -> Any:
        names = [field.name for field in dataclasses.fields(output) if hasattr(output, field.name)]
        parts = {name: self.apart(getattr(output, name), depth) for name in names}
        if _same(parts.values(), (getattr(output, name) for name in names)):
            return output
        made = copy.copy(output)
        for name, part in parts.items():
            object.__setattr__(made, name, part)
        return made

    def kept_by(self, unit: torch.nn.Module) -> str | None:
        """The attribute of one of the unit's modules that holds one of them; None without one."""
        for path, module in unit.named_modules():
            for name, value in vars(module).items():
                if name not in _OF_TORCH and self.apart(value) is not value:
                    return f"{path}.{name}" if path else name
        return None


_KEPT = (
    "is kept by other code (a hook, a cache) since a run of that block: it is memory that other "
    "blocks use next"
)
_OF_TORCH = frozenset(vars(torch.nn.Module()))


def _looks_anew(module: torch.nn.Module) -> bool:
    """Whether a module keeps its weights in a list, which it makes anew where others hang."""
    return isinstance(module, torch.nn.RNNBase)


def _storage(tensor: torch.Tensor) -> int | None:
    """What identifies a tensor's memory; None for one that has none of the usual kind."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse, or a transform's own
        return None


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    made = tensor.detach().clone()
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(made, requires_grad=False) if is_parameter else made


def _same(ones: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(one is other for one, other in zip(ones, others, strict=True))
