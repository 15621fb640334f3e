"""The wrapper pack's LoRA buffers, VACE blocks and outside parts in forms that can be streamed.

LoRAs that are not merged hang as buffers and are streamed as parameters; parts of a block that run
outside of its forward stay on the device; VACE blocks, whose `forward` is called by
name, are called as modules. Tensors of GGUF files are the business of `gguf`.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from ...adapters.families import bare, unit_modules
from ...adapters.live import LiveUnit
from ...store.leaves import leaf_tensors
from .gguf import on_host, say_what_they_are
from .names import LORA_BUFFERS, OUTSIDE

_OUTSIDE = "blockswap_outside"


def describable(undo: ExitStack, transformer: Any, device: torch.device) -> None:
    """Makes of a transformer what the engine can lay out; `undo` makes it what it was."""
    if device.type != "cpu":
        _set_aside(undo, transformer, device)
    for unit in unit_modules(transformer):
        for module in unit.module.modules():
            _lora_as_parameters(undo, module)
    for module in transformer.modules():
        say_what_they_are(undo, module)


def _set_aside(undo: ExitStack, transformer: Any, device: torch.device) -> None:
    """Parts that run outside of their block's forward are no part of the block meanwhile."""
    found = torch.nn.ModuleList()
    undo.callback(lambda: vars(transformer).get("_modules", {}).pop(_OUTSIDE, None))
    transformer.add_module(_OUTSIDE, found)
    for unit in unit_modules(transformer):
        block: Any = bare(unit.module)
        children = dict(block.named_children())
        names = [name for name in OUTSIDE if name in children]
        if not names:
            continue
        undo.callback(_put_back, block, children, names)
        for name in names:
            delattr(block, name)
            place(children[name], device)
            vars(block)[name] = children[name]
            found.append(children[name])


def _put_back(block: Any, children: dict[str, torch.nn.Module], names: list[str]) -> None:
    for name in names:
        vars(block).pop(name, None)
    for name, child in children.items():  # in the order that they had
        if name in dict(block.named_children()):
            delattr(block, name)
        block.add_module(name, child)


def _lora_as_parameters(undo: ExitStack, module: torch.nn.Module) -> None:
    names = [n for n, t in module._buffers.items() if n.startswith(LORA_BUFFERS) and t is not None]
    if not names:
        return
    undo.callback(_lora_as_buffers, module, names)
    for name in names:
        found = module._buffers.pop(name)
        assert found is not None
        module._parameters[name] = torch.nn.Parameter(found, requires_grad=False)


def _lora_as_buffers(module: torch.nn.Module, names: list[str]) -> None:
    for name in names:
        parameter = module._parameters.pop(name, None)
        if parameter is not None:
            module._buffers[name] = parameter.data


def bring_to_host(undo: ExitStack, unit: LiveUnit, weights: Any) -> None:
    """Weights of a streamed unit in host memory, and once only.

    The pack keeps `weights` for its next run. Where one of them is what the model is to have, it
    is hung itself, so that it moves into the store with the unit and back. What the pack has put
    on the device and has no copy of (merged LoRAs, a model loaded to the device) is copied back.
    """
    for live in unit.tensors:
        key, tensor = live.places[0].label.replace("_orig_mod.", ""), live.tensor
        kept = None if weights is None else weights.get(key)
        on_cpu = all(leaf.device.type == "cpu" for _, leaf in leaf_tensors(tensor))
        if kept is not None and _is_copy(kept, tensor, on_cpu=on_cpu):
            undo.callback(_keep_again, weights, key, kept)
            home = kept
        elif on_cpu:
            continue
        elif hasattr(tensor, "as_tensor"):
            home = on_host(tensor)
        else:
            home = torch.nn.Parameter(tensor.detach().cpu(), requires_grad=False)
        for place in live.places:
            place.table[place.name] = home


def _is_copy(kept: Any, tensor: torch.Tensor, *, on_cpu: bool) -> bool:
    """Whether a weight that the pack keeps is what hangs in the model, maybe on the device."""
    if type(kept) is not torch.Tensor or not kept.is_cpu:
        return False
    alike = kept.dtype == tensor.dtype and kept.shape == tensor.shape
    return alike and (not on_cpu or kept.data_ptr() == tensor.data_ptr())


def _keep_again(weights: Any, key: str, kept: torch.Tensor) -> None:
    if weights.get(key) is kept:
        weights[key] = kept.data


def renew(module: torch.nn.Module) -> None:
    """Gives weights whose data was exchanged a count of writes again.

    The pack makes its parameters in inference mode; one whose data came later is neither a tensor
    of that mode nor one outside of it, and some kernels refuse it.
    """
    for part in module.modules():
        for name, tensor in part._parameters.items():
            if type(tensor) in (torch.nn.Parameter, torch.Tensor):
                assert tensor is not None
                part._parameters[name] = torch.nn.Parameter(tensor.data, requires_grad=False)


def place(module: torch.nn.Module, device: torch.device) -> None:
    """Puts a module that is not streamed on the device."""
    module.to(device)
    renew(module)


def buffers_on(undo: ExitStack, module: torch.nn.Module, device: torch.device) -> None:
    """Buffers of a streamed unit stay on the device for as long as it is streamed."""
    for part in module.modules():
        for name, buffer in list(part._buffers.items()):
            if buffer is None or buffer.device == device:
                continue
            moved = buffer.to(device)
            part._buffers[name] = moved
            undo.callback(_buffer_back, part, name, buffer, moved)


def _buffer_back(
    module: torch.nn.Module, name: str, before: torch.Tensor, moved: torch.Tensor
) -> None:
    if module._buffers.get(name) is moved:
        module._buffers[name] = before


def called_as_modules(undo: ExitStack, transformer: Any) -> None:
    """`block.forward(x)` of a VACE block becomes `block(x)`, so that its hooks are run."""
    for unit in unit_modules(transformer):
        if unit.kind == "vace":
            block: Any = unit.module
            before, inner = vars(block).get("forward"), block.forward
            ours = _AsModule(block, inner)
            vars(block)["forward"] = ours
            undo.callback(_own_forward, block, ours, before)


class _AsModule:
    """In place of a block's `forward`: the first call goes through the block, the inner one on."""

    def __init__(self, block: Any, forward: Callable[..., Any]) -> None:
        self._block = block
        self._forward = forward
        self._inside = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._inside:
            return self._forward(*args, **kwargs)
        self._inside = True
        try:
            return self._block(*args, **kwargs)
        finally:
            self._inside = False


def _own_forward(block: Any, ours: Any, before: Any) -> None:
    if vars(block).get("forward") is ours:
        del vars(block)["forward"]
        if before is not None:
            vars(block)["forward"] = before
