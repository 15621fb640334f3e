"""What following a forward leaves as it was: what hangs on the model, random states, users' hooks.

A forward may keep what it made, and what it made then is on the meta device: rope tables in
attributes, hidden states in the caches of attention processors and of hooks, counts of steps.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch.utils._pytree import tree_iter

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_OF_TORCH = frozenset(vars(torch.nn.Module())) - frozenset(_HOOKS)
# Whose hooks belong to the forward itself; any other is called for what was computed alone.
_LIBRARIES = ("torch", "accelerate", "diffusers", "transformers", "peft", "blockswap", "comfy")
# What hangs on a module is looked into so deep: registries, their hooks, those's states, fields.
_DEPTH = 8
# Objects of these packages are not a forward's, or are put back by whoever owns them.
_OPAQUE = ("builtins", "torch", "threading", "logging", "weakref", "concurrent", "queue", "types")


@contextmanager
def left_untouched(root: torch.nn.Module, inputs: Any = ()) -> Iterator[None]:
    """Gives every module back the attributes it had, and what hangs on them its contents: lists,
    dictionaries, objects (attention processors, the caches of hooks) and random generators, those
    of `inputs` and torch's own among them. Hooks that a library installs in a first forward go."""
    kept = _Kept()
    for module in root.modules():
        kept.attributes(module)
    for leaf in tree_iter(inputs):
        kept.look_into(leaf, _DEPTH)
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        kept.put_back()


def without_users_hooks(root: torch.nn.Module) -> None:
    """Takes off, until `left_untouched` ends, forward hooks that no library has put on."""
    for module in root.modules():
        for table in map(vars(module).__getitem__, _HOOKS[:2]):
            for number, hook in list(table.items()):
                if _package(getattr(hook, "func", hook)) not in _LIBRARIES:
                    del table[number]


class _Kept:
    """Containers with a copy of each, in the order in which they were found."""

    def __init__(self) -> None:
        self._contents: list[tuple[Any, Any]] = []
        self._generators: list[tuple[torch.Generator, torch.Tensor]] = []
        self._seen: dict[int, int] = {}  # by identity: how deep it was looked into

    def attributes(self, module: torch.nn.Module) -> None:
        self._keep(vars(module))
        for name, value in list(vars(module).items()):
            if name not in _OF_TORCH:
                self.look_into(value, _DEPTH)

    def look_into(self, value: Any, depth: int) -> None:
        if isinstance(value, str | int | float | bool | torch.Tensor | torch.nn.Module | None):
            return
        before = self._seen.get(id(value), 0)
        if before >= depth:
            return
        self._seen[id(value)] = depth
        if isinstance(value, torch.Generator) and not before:
            self._generators.append((value, value.get_state()))
        for inner in self._held(value):
            self.look_into(inner, depth - 1)

    def _held(self, value: Any) -> list[Any]:
        """What a container or an object holds, which is kept."""
        if isinstance(value, tuple):
            return list(value)
        if type(value) in (dict, OrderedDict, defaultdict):
            self._keep(value)
            return list(value.values())
        if type(value) in (list, set):
            self._keep(value)
            return list(value)
        inside = getattr(value, "__dict__", None)
        if type(inside) is not dict or _package(type(value)) in _OPAQUE:
            return []
        self._keep(inside)
        return list(inside.values())

    def _keep(self, container: Any) -> None:
        self._contents.append((container, copy(container)))

    def put_back(self) -> None:
        for container, before in self._contents:
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(before)
        for generator, state in self._generators:
            generator.set_state(state)


def _package(owner: Any) -> str:
    return str(getattr(owner, "__module__", None) or type(owner).__module__).partition(".")[0]
