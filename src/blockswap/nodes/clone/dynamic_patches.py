"""Patches (LoRA) on blocks taken out of dynamic VRAM: computed at each use, as the host does there.

Three kinds of layer, as the host tells them apart: small ones are patched as by any loading; one
that multiplies with its weight as it is quantised gets the patched weight quantised again; any
other computes its patch on the weight that is handed to it.
"""

from collections.abc import Callable
from typing import Any

import torch

from ...errors import ModelError
from ..from_file.arrival import Patches, as_loaded, hang_where_read, patch_while_running
from ..seams import host, host_dynamic

_NAMES = ("weight", "bias")


def attach_patches(patcher: Any, modules: frozenset[torch.nn.Module]) -> None:
    """Puts the patcher's patches on `modules`. Raises ModelError for one that changes a shape."""
    for path, module, is_small in host_dynamic.entries(patcher, modules):
        if not host_dynamic.prepare(module, path):
            continue
        if is_small:
            _as_loaded(patcher, module, path)
        else:
            _at_use(patcher, module, path)
    hang_where_read(modules)


def _as_loaded(patcher: Any, module: torch.nn.Module, path: str) -> None:
    patches: Patches = {}
    for name, _ in module.named_parameters(recurse=False):
        patch = host.patch_of_loading(patcher, f"{path}.{name}", module, name)
        if patch is not None:
            patches[name] = as_loaded(patch)
    if patches:
        patch_while_running(module, patches)


def _at_use(patcher: Any, module: torch.nn.Module, path: str) -> None:
    found = {name: host_dynamic.patch_at_use(patcher, f"{path}.{name}") for name in _NAMES}
    others = {name: host_dynamic.wrappers(patcher, f"{path}.{name}") for name in _NAMES}
    patches = {name: patch for name, patch in found.items() if patch is not None}
    for name in patches:
        _refuse_new_shape(patcher, f"{path}.{name}", getattr(module, name))
    if patches and not any(others.values()) and host_dynamic.computes_quantised(module):
        patch_while_running(
            module, {name: _requantised(module, patch, path) for name, patch in patches.items()}
        )
        return
    for name in _NAMES:
        own = [patches[name]] if name in patches else []
        setattr(module, f"{name}_function", own + others[name])


def _requantised(
    module: torch.nn.Module, patch: Any, path: str
) -> Callable[[torch.Tensor, Any], torch.Tensor]:
    def make(arrived: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        dtype = host_dynamic.patching_dtype(module, given)
        return host_dynamic.requantised(patch, arrived, dtype, path)

    return make


def _refuse_new_shape(patcher: Any, key: str, weight: torch.Tensor) -> None:
    if host_dynamic.changes_shape(patcher, key, weight):
        raise ModelError(
            f"a patch (LoRA) gives {key} another shape, and a streamed block keeps the one it has: "
            "leave its block out of those to be swapped, or put the patch elsewhere"
        )
