"""Weight patches (LoRA) on blocks that are read from a file: applied each time a block arrives.

ComfyUI patches a loaded weight once, with stochastic rounding, and patches a weight that it streams
itself on the fly, in a coarser way. Here the first way is taken on the fly, so that a model
streamed from its file gives the very bits of the loaded one.

A plain weight is patched where ComfyUI hands it to the module's functions. A quantised one is
quantised again by ComfyUI, and a module computes with it in another way than with a weight that
has functions: so the patched weight hangs in the module while it runs, as a loaded one would.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ...errors import HostError
from ...pieces import kept_in_visit
from ..host_code.weight_readers import read_parts
from ..seams import host

_HOOKS = "blockswap_patching"
# By a weight's name in its module: from the weight that has arrived and the module's input.
Patches = dict[str, Callable[[torch.Tensor, Any], torch.Tensor]]


class PatchOnArrival:
    """Stands in for ComfyUI's `LowVramPatch` in a module's weight functions."""

    def __init__(self, host_patch: Any, module: torch.nn.Module, name: str) -> None:
        self._patch = host_patch
        self._module = module
        self._name = name

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The patched weight, in the dtype in which ComfyUI hands the unpatched one over.

        It is made of the weight as it arrived: what is handed over may have lost bits.
        """
        arrived = getattr(self._module, self._name).to(weight.device)
        return host.patched(self._patch, arrived).to(weight.dtype)


class _PatchedWhileRunning:
    """Hooks that hang the patched weight in a module for the time of its forward."""

    def __init__(self, module: torch.nn.Module, patches: Patches) -> None:
        self._module, self._patches = module, patches
        self._arrived: dict[str, Any] = {}
        self.stand_around(module)

    def stand_around(self, runs: torch.nn.Module) -> None:
        """Whose forward it is for: the module's own, or that of one that reads its weight."""
        if hasattr(self, "_handles"):
            self.remove()
        self._handles = (
            runs.register_forward_pre_hook(self._hang),
            runs.register_forward_hook(self._take_down, always_call=True),
        )

    def _hang(self, _: torch.nn.Module, inputs: Any) -> None:
        module = self._module
        kept = kept_in_visit(module)
        for name, patch in self._patches.items():
            arrived: Any = module._parameters[name]
            self._arrived[name] = arrived
            made: Any = None if kept is None else kept.get(name)
            if made is None:
                made = patch(arrived, inputs[0])
                made._is_param = True  # `Parameter` would copy the parts of a quantised tensor
            if kept is not None:
                kept[name] = made
            module._parameters[name] = made

    def _take_down(self, *_: Any) -> None:
        self._module._parameters.update(self._arrived)
        self._arrived.clear()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def patch_while_running(module: torch.nn.Module, patches: Patches) -> None:
    """Hangs each weight as its patch makes it while `module` runs, until patches are forgotten."""
    vars(module)[_HOOKS] = _PatchedWhileRunning(module, patches)


def hang_where_read(modules: Iterable[torch.nn.Module]) -> None:
    """Where a module reads the weight of a part past its call, it hangs while the module runs."""
    for module, part in read_parts(modules):
        hooks = vars(part).get(_HOOKS)
        if hooks is not None:
            hooks.stand_around(module)


def as_loaded(noted: Any, patcher: type | None = None) -> Callable[[torch.Tensor, Any], Any]:
    """A patch that makes what the loading of a patcher (the host's) would have made of a weight."""
    return lambda arrived, _: host.patched(noted, arrived, patcher)


def patch_on_arrival(module: torch.nn.Module) -> None:
    """Takes over what the host has prepared for patching `module`'s weights at each use."""
    if is_traceable_wrapper_subclass(module.weight):
        noted = {name: _only_patch(module, name) for name in ("weight", "bias")}
        # The module is to compute as one whose weight was loaded.
        host.forget_noted(module)
        patch_while_running(
            module, {name: as_loaded(patch) for name, patch in noted.items() if patch is not None}
        )
        return
    for name in ("weight", "bias"):
        functions: list[Any] = getattr(module, f"{name}_function", [])
        for at, function in enumerate(functions):
            if host.is_noted_patch(function):
                functions[at] = PatchOnArrival(function, module, name)


def is_patched(module: Any) -> bool:
    """Whether something is done to a module's weight each time it runs, by the host or here."""
    functions = getattr(module, "weight_function", []), getattr(module, "bias_function", [])
    return any(functions) or _HOOKS in vars(module)


def forget_patches(module: torch.nn.Module) -> None:
    """Takes off what was prepared for patching, by the host and here."""
    hooks = vars(module).pop(_HOOKS, None)
    if hooks is not None:
        hooks.remove()
    host.forget_noted(module)


def _only_patch(module: torch.nn.Module, name: str) -> Any | None:
    """The noted patch of a weight; other functions on a quantised one cannot be kept in order."""
    functions: list[Any] = getattr(module, f"{name}_function", [])
    if not functions:
        return None
    if len(functions) > 1 or not host.is_noted_patch(functions[0]):
        raise HostError(
            "another node has put a function on a quantised weight that is streamed from its "
            "file: use ComfyUI's own loader with WanVideo Block Swap behind it"
        )
    return functions[0]


def refuse_unnoted(keys: set[str], noted: set[str]) -> None:
    """Raises HostError where the host was to note a patch on a weight and has not."""
    lost = sorted(keys - noted)
    if lost:
        raise HostError(
            f"this ComfyUI has not noted the patch (LoRA) on {lost[0]} and {len(lost) - 1} others "
            "that are streamed from the file: use ComfyUI's own loader with WanVideo Block Swap "
            "behind it"
        )
