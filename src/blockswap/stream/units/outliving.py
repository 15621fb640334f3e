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


class Users:
    """Who refers to some tensors, as a number that only a new reference raises."""

    __slots__ = ("_asked", "_storages", "_tensors")

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        leaves = [leaf for tensor in tensors for _, leaf in leaf_tensors(tensor)]
        self._tensors = tuple({id(one): one for one in (*tensors, *leaves)}.values())
        self._asked = False  # whether a keeper was looked for, which takes a while
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
        if instead is not output or self._asked:
            return instead, spoiled
        self._asked = True
        gc.collect()  # of what is not needed any more some waits in circles for this
        if self.count() <= run.users:
            return output, spoiled
        attribute = self.kept_by(run.module)
        if attribute is None and not any(sentence.endswith(_KEPT) for sentence in sentences):
            sentences.append(f"a weight of {run.name}, or a view of one, {_KEPT}")
        if attribute is None:
            return output, spoiled
        return output, (
            f"{run.name} keeps a weight, or a view of one, in its {attribute}, and its weights "
            "leave when its forward ends: leave that block out of `blocks`, so that it stays"
        )

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is one of them, or a view of their memory."""
        return any(
            leaf.untyped_storage()._cdata in self._storages for _, leaf in leaf_tensors(tensor)
        )

    def apart(self, output: Any) -> Any:
        """What a block returned, with copies in the place of the tensors; itself without any."""
        if isinstance(output, torch.Tensor):
            return _copied(output) if self.has(output) else output
        if isinstance(output, dict):
            return self._dictionary_apart(output)
        if isinstance(output, (tuple, list)):
            parts = [self.apart(part) for part in output]
            if _same(parts, output):
                return output
            return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
        if dataclasses.is_dataclass(output) and not isinstance(output, type):
            return self._value_apart(output)
        return output

    def _dictionary_apart(self, output: dict[Any, Any]) -> Any:
        parts = {key: self.apart(part) for key, part in output.items()}
        if _same(parts.values(), output.values()):
            return output
        made = copy.copy(output)
        for key, part in parts.items():
            made[key] = part
        return made

    def _value_apart(self, output: Any) -> Any:
        names = [field.name for field in dataclasses.fields(output) if hasattr(output, field.name)]
        parts = {name: self.apart(getattr(output, name)) for name in names}
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


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    made = tensor.detach().clone()
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(made, requires_grad=False) if is_parameter else made


def _same(ones: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(one is other for one, other in zip(ones, others, strict=True))
