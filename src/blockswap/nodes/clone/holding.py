"""`Holding`: the blocks of one ComfyUI model that are ours, from a load until they are given back.

All clones of a model share one model object, so the holding hangs on that object, beside what the
host itself keeps there. Who owns a block at any time:

    nothing held    the host's, wherever it put it
    held            ours: streamed; every other weight of the model is still the host's
    parked          ours, but the clone that asked for it was taken off: the next clone that loads
                    either asked for the same and goes on with it, or makes the host unload all
"""

import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...ambient import undisturbed
from ...plan import SwapPlan
from ...selection import BlockSwapArgs
from ...swap import FileUnits, Hosted, Swap, stream_file_units, stream_units
from ..from_file.arrival import forget_patches
from ..host_code.block_methods import methods_of
from ..in_pieces.wan_pieces import WAN
from ..runs.status import StatusLine
from ..seams import host
from ..seams.gguf import patches_aside

_ATTRIBUTE = "blockswap_holding"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a clone needs of the shared model; two clones with equal claims can share a holding."""

    args: BlockSwapArgs
    device: torch.device
    patches: Any  # the host's own identity of a set of weight patches
    replaced: tuple[tuple[str, int], ...]  # objects that other nodes put in place of blocks


class Holding:
    """The streamed units of one model object. `swap` is None until the host has loaded the rest."""

    def __init__(
        self, model: Any, claim: Claim, plan: SwapPlan, files: FileUnits | None = None
    ) -> None:
        self.claim = claim
        self.files = files  # where the units are, when the host has none of them
        self.plan = plan
        self.swap: Swap | None = None
        self.loading = False  # the host is at work on behalf of the clone that holds
        self.taking = False  # ... and on the streamed units' turn of it
        # Weights in the file whose patches their pack keeps itself, or that are patched on arrival.
        self.noted: dict[str, Any] = {}
        self._model = weakref.ref(model)
        self._owner: weakref.ref[Any] | None = None
        self._parked: Any = None
        self._status = StatusLine(self._status_line)
        self.closed = False
        root: torch.nn.Module = model.diffusion_model
        names = plan.streamed if files is None else files.names
        units = [root.get_submodule(name) for name in names]
        self.modules = frozenset(module for unit in units for module in unit.modules())
        self._guards = [_Guard(self, module) for module in (root, *self.modules)]
        for guard in self._guards:
            guard.install()
        setattr(model, _ATTRIBUTE, self)
        # For a model that is dropped without having been unloaded.
        self._dropped = weakref.finalize(model, self.close)
        self._dropped.atexit = False  # the process takes its memory with it

    @property
    def own_bytes(self) -> int:
        """Device memory that is ours: slots, and the residents of a model in a file."""
        kept = self.plan.resident_bytes if self.files is not None else 0
        return kept + self.plan.slots * self.plan.slot_bytes

    def hold(self, owner: Any, node_id: str | None) -> None:
        """`owner` is the clone that the model is loaded for; when it goes, the holding is parked.

        The host then takes the clone's parent for loaded, which did not ask for block swap.
        """
        self._status.node_id = node_id
        self._owner = weakref.ref(owner, lambda _: self._owner_went())

    def _owner_went(self) -> None:
        self.park()

    def is_held_for(self, patcher: Any) -> bool:
        """Whether the model is loaded for this very clone."""
        return self._owner is not None and self._owner() is patcher

    def open(self, root: torch.nn.Module) -> None:
        """Starts streaming, after the host has loaded what is its."""
        if self.swap is not None:
            return
        self.swap = self._start(root, self._status)

    def _start(self, root: torch.nn.Module, told: Callable[[], None]) -> Swap:
        """Opens the engine; `told` is to be called after each forward."""
        args, device = self.claim.args, self.claim.device
        hosted = Hosted(told, WAN, methods_of)
        with patches_aside(root):
            if self.files is None:
                return stream_units(root, self.plan, args, device=device, hosted=hosted)
            return stream_file_units(self.files, self.plan, args, device=device, hosted=hosted)

    def _status_line(self) -> str:
        return "" if self.swap is None else self.swap.status_line()

    @contextmanager
    def at_work(self, *, taking: bool = False) -> Iterator[None]:
        """While the host loads for the holder: moves of held modules do nothing.

        `taking`: it prepares the streamed units, and only them.
        """
        self.loading, self.taking = True, taking
        try:
            yield
        finally:
            self.loading = self.taking = False

    def taken_off(self, patcher: Any) -> None:
        """The host has taken a clone off the model, and left the weights as they are."""
        self.park()

    def park(self) -> None:
        """The clone was taken off the shared model; nothing moves until it is known who is next.

        The host compares the identity of the weight patches in the model with the next clone's.
        One that no clone has makes it unload everything first, and that closes the holding.
        """
        model = self._model()
        if model is None or self.closed or self._parked is not None:
            return
        self._parked = host.loaded_patches(model)
        host.set_loaded_patches(model, uuid.uuid4())

    def resume(self, owner: Any, node_id: str | None) -> None:
        """A clone with an equal claim goes on with what is there."""
        model = self._model()
        if self._parked is not None and model is not None:
            host.set_loaded_patches(model, self._parked)
        self._parked = None
        self.hold(owner, node_id)

    def close(self) -> None:
        """Gives the blocks back to the host as they were. Closing twice does nothing."""
        if self.closed:
            return
        # The host runs in inference mode; what comes back must be usable outside it, too.
        with undisturbed():
            if self.swap is not None:
                self.swap.close()
        self.closed = True
        self._owner = None
        self._dropped.detach()
        for guard in self._guards:
            guard.remove()
        if self.files is not None:
            for module in self.modules:
                forget_patches(module)


def holding_of(model: Any) -> Holding | None:
    """The open holding on a shared model object."""
    holding = last_holding_of(model)
    return None if holding is None or holding.closed else holding


def last_holding_of(model: Any) -> Holding | None:
    """The open holding, or the last one, whose report is kept."""
    holding: Holding | None = vars(model).get(_ATTRIBUTE)
    return holding


class _Guard:
    """Stands in for `Module._apply`, through which the host moves modules."""

    def __init__(self, holding: Holding, module: torch.nn.Module) -> None:
        self._holding = holding
        self._module = module

    def install(self) -> None:
        self._before: Any = vars(self._module).get("_apply")
        self._module._apply = self  # type: ignore[method-assign]

    def remove(self) -> None:
        if vars(self._module).get("_apply") is not self:
            return  # someone has wrapped it meanwhile
        del self._module._apply
        if self._before is not None:
            self._module._apply = self._before

    def __call__(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> torch.nn.Module:
        """A move that the holder's own load asks for is not for our blocks.

        Any other means that the host wants them back: for a clone without block swap, or for
        whoever needs the memory.
        """
        holding = self._holding
        if not holding.closed:
            if not (holding.loading or self._stays(fn)):
                holding.close()
            elif self._module in holding.modules:
                return self._module
        move: Any = self._before or type(self._module)._apply.__get__(self._module)
        moved: torch.nn.Module = move(fn, recurse)
        return moved

    def _stays(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> bool:
        """Whether the move leads to where the blocks compute; on the CPU every move ends it."""
        device = self._holding.claim.device
        if device.type == "cpu":
            return False
        probe = torch.empty(0, dtype=torch.float32, device=device)
        moved = fn(probe)
        return moved.device == probe.device and moved.dtype == probe.dtype


class Immovable:
    """Stands in for `Module._apply` where a module never has weights that could be moved."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        module._apply = self  # type: ignore[method-assign]

    def __call__(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> torch.nn.Module:
        return self._module
