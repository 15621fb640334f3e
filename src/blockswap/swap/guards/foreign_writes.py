"""Which LoRA merges, casts, offloads and writes by other code a swapped model refuses.

A call that writes or replaces weights reaches neither slots that were filled ahead nor copies on
the device, so it is refused before it touches anything. What came in past the calls (hooks that
cast or offload, adapters merged or added without data) is found when the next forward begins.
"""

import ctypes
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any
from zlib import crc32

import torch
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ...adapters.diffusers_seam import (
    LORA_INSTEAD,
    MOVING_HOOKS,
    WRITING_CALLS,
    adapted_layer,
    hook_registry,
    merged_adapters,
)
from ...adapters.live import LiveTensor
from ...errors import StateError
from ...store.leaves import leaf_tensors
from ...store.places import Place
from ...store.traces import Traces
from ...stream.model.hooks import Uncopyable
from ..assembly.parts import Parts
from ..running.handle import Swap
from .cuda_graphs import refuse_cuda_graphs

_WRITE = "close the swap, do it, then swap again"
_CHANGE = "close the swap, then change the weights and swap again"


class Doors:
    """Watches one swapped model whose weights are not simply computed with where they lie."""

    def __init__(self, parts: Parts, swap: Swap, *, debug: bool) -> None:
        self._root = parts.live.root
        self._label = parts.live.layout.label
        self._swap = swap
        placed = [tensor for unit in parts.live.units for tensor in unit.tensors]
        own = (*placed, *parts.live.rest, *parts.live.tables)
        self._own_tensors = own
        self._bases = frozenset(id(p.module) for t in own for p in t.places)
        self._own = frozenset((id(p.module), p.name) for t in own for p in t.places)
        self._device = parts.device.torch_device
        self._compiled = (self._root, *(unit.module for unit in parts.live.units))
        self._merged = dict(_merged(map(vars, self._root.modules())))
        self._originals = Traces([live.tensor for live in own])
        if self._originals.uncounted:
            parts.pool.sentences.append(
                f"{self._originals.uncounted} weights were made in inference mode, which counts no "
                "writes: writing to one while the model is swapped is noticed with "
                "block_swap_debug only"
            )
        self._adapted: list[torch.nn.Module] = []  # PEFT's layers, kept until the next look
        self._known: list[weakref.ref[torch.nn.Module]] = []
        self._changed = True  # a module or parameter was registered, in whatever model
        self._placed = placed if debug else []
        self._sums = {place.label: total for place, total in _sums(self._placed)}

    def close(self, undo: ExitStack) -> None:
        """Refuses the calls until `undo`, and looks at the model when a forward begins."""
        for name, what, instead in WRITING_CALLS:
            if callable(getattr(self._root, name, None)) and name not in vars(self._root):
                refusal = _Refused(
                    f"{what} {self._label} while its blocks are streamed, which would not reach "
                    f"all copies of its weights: {instead}"
                )
                setattr(self._root, name, refusal)
                undo.callback(_reopen, self._root, name, refusal)
        undo.callback(self._root.register_forward_pre_hook(_Look(self), prepend=True).remove)
        self._keep_adapted(self._root.modules())
        notice = _Notice(self)  # torch's table of these hooks outlives a model that is dropped
        for register in (
            register_module_module_registration_hook,
            register_module_parameter_registration_hook,
        ):
            undo.callback(weakref.finalize(self._root, register(notice).remove))

    def look(self) -> None:
        """Raises StateError for what came in past the calls, before anything computes with it."""
        if self._device.type != "cpu":
            refuse_cuda_graphs(self._compiled, self._label)
        known, modules = [reference() for reference in self._known], []
        if self._changed or None in known:
            modules = list(self._root.modules())
            for module in modules:
                self._refuse_elsewhere(module)
            self._refuse_merged_and_gone(modules)
            if known and known != modules:
                # Who brought a layer, or took one out, may have written to the weights in it.
                self._swap.forget_slots()
            self._known = list(map(weakref.ref, modules))
            self._adapted = []
            self._keep_adapted(modules)
            self._changed = False
        else:
            modules = [module for module in known if module is not None]
        # Once a forward, all modules: no more than two look-ups each.
        inner = [vars(module) for module in modules]
        for inside in inner:
            hooks = hook_registry(inside)
            if hooks is not None:
                self._refuse_hooks(hooks)
        if dict(_merged(inner)) != self._merged:
            self._swap.forget_slots()
            raise StateError(
                f"adapters were merged into {self._label}, or taken out, while its blocks are "
                f"streamed, which did not reach all copies of its weights: undo it; {_WRITE}"
            )
        if self._originals.written_to():  # through a tensor kept from before: an optimizer's, say
            written = set(map(id, self._originals.culprits()))
            label = next(t.places[0].label for t in self._own_tensors if id(t.tensor) in written)
            raise StateError(
                f"{label} was changed by other code while its block is swapped: {_CHANGE}"
            )
        for place, total in _sums(self._placed):
            if self._sums.setdefault(place.label, total) != total:
                raise StateError(
                    f"{place.label} was written to while its block is swapped, in a way that left "
                    "no trace but its content (found by block_swap_debug), and copies of it may "
                    f"have the old one: {_WRITE}"
                )

    def notice(self, registered: object) -> None:
        """Something was registered in some module: all of them are looked through next time."""
        self._changed = True
        if isinstance(registered, torch.nn.Module):
            self._keep_adapted([registered])

    def _keep_adapted(self, modules: Iterable[torch.nn.Module]) -> None:
        """A layer of PEFT's that merges and then leaves is asked afterwards what it did."""
        for module in modules:
            if id(adapted_layer(module)) in self._bases:
                self._adapted.append(module)

    def _refuse_merged_and_gone(self, modules: Sequence[torch.nn.Module]) -> None:
        inside = set(map(id, modules))
        for layer in self._adapted:
            if id(layer) not in inside and merged_adapters(vars(layer)):
                self._swap.forget_slots()
                raise StateError(
                    f"adapters were merged into {self._label} and taken out while its blocks are "
                    "streamed, which did not reach all copies of its weights: load the model "
                    "anew, merge them, then swap it"
                )

    def _refuse_hooks(self, registry: Any) -> None:
        for name in getattr(registry, "hooks", ()):
            if name in MOVING_HOOKS:
                where = (
                    n for n, m in self._root.named_modules() if hook_registry(vars(m)) is registry
                )
                raise StateError(
                    f"a hook of diffusers on {next(where, '') or 'it'} of {self._label} "
                    f"{MOVING_HOOKS[name]}, which keeps copies outside the plan: swap a model "
                    "without it (disable it, or load the model anew), in the dtype that it "
                    "computes in"
                )

    def _refuse_elsewhere(self, module: torch.nn.Module) -> None:
        """What the swap did not place must be where the model computes."""
        for name, value in module._parameters.items():
            if value is None or (id(module), name) in self._own or value.device == self._device:
                continue
            where = next(n for n, m in self._root.named_modules() if m is module)
            if value.is_meta:
                raise StateError(
                    f"{where}.{name} came into {self._label} after it was opened and has no data "
                    "(it is on the meta device): take it out again (delete_adapters), and "
                    f"{LORA_INSTEAD}"
                )
            raise StateError(
                f"{where}.{name} came into {self._label} after it was swapped and is on "
                f"{value.device}, while the model runs on {self._device}: move it there with "
                f"model.to({str(self._device)!r}), or add it before the swap"
            )


def _merged(modules: Iterable[dict[str, Any]]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """PEFT's layers, by their dictionaries, and which adapters are merged into each."""
    for known in modules:
        merged = merged_adapters(known)
        if merged:
            yield id(known), merged


def _sums(placed: Sequence[LiveTensor]) -> Iterator[tuple[Place, int]]:
    """A checksum of what hangs in the model for each tensor now, wherever that is; waits for it."""
    for live in placed:
        place, total = live.places[0], 0
        leaves = [leaf for _, leaf in leaf_tensors(place.table[place.name])]
        if any(leaf.is_meta for leaf in leaves):
            continue  # its data is in the file, which is compared when it is read
        for leaf in leaves:
            total = crc32(_bytes_of(leaf), total)
        yield place, total


def _bytes_of(leaf: torch.Tensor) -> ctypes.Array[ctypes.c_char]:
    host = leaf.detach().to("cpu").contiguous()
    view = (ctypes.c_char * (host.numel() * host.element_size())).from_address(host.data_ptr())
    view.keeps = host  # type: ignore[attr-defined]
    return view


def _reopen(root: torch.nn.Module, name: str, refusal: "_Refused") -> None:
    if vars(root).get(name) is refusal:  # else someone has wrapped it meanwhile
        delattr(root, name)


class _Refused(Uncopyable):
    def __init__(self, sentence: str) -> None:
        self._sentence = sentence

    def __call__(self, *_: Any, **__: Any) -> None:
        raise StateError(self._sentence)


class _Look(Uncopyable):
    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *_: Any) -> None:
        self._doors.look()


class _Notice:
    def __init__(self, doors: Doors) -> None:
        self._doors = weakref.ref(doors)

    def __call__(self, module: torch.nn.Module, name: str, registered: object) -> None:
        doors = self._doors()
        if doors is not None:
            doors.notice(registered)
