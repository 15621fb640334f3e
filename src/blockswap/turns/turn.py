"""How a model takes its turn on the device: there in one piece, or with its units streamed."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..adapters.live import places_of
from ..ambient import undisturbed
from ..layout.slab import align_up
from ..plan import SwapPlan
from ..predict.recorder import GRANULARITY_BYTES
from ..selection import BlockSwapArgs
from ..store.places import Place
from ..stream.device import open_device
from ..swap import open_text_encoder, swap_blocks, swap_experts
from ..swap.entry.arguments import refuse_swapped


class Turn:
    """Models that are on the device together, until `close()`: one, or experts used in turn.

    They lie there whole where `budget` bytes hold them and `activation_bytes`; else their blocks
    are streamed. Afterwards every parameter and buffer is the object that it was, in host memory.
    """

    def __init__(
        self,
        models: Sequence[torch.nn.Module],
        device: torch.device,
        *,
        budget: int | None,
        activation_bytes: int = 0,
        ram_budget: int | None = None,
        workload: Any = None,
    ) -> None:
        """Raises ModelError where they must be streamed and have no list of blocks, PlanError, and
        StateError where one is swapped by itself."""
        self._device, self._models = device, tuple(models)
        self._swap: Any = None
        self._moved: list[tuple[Place, torch.Tensor, torch.Tensor, int]] = []
        if device.type == "cpu":
            return
        for model in models:
            refuse_swapped(model)  # since its pipeline was
        self._before = {id(tensor) for _, tensor in self._on_device()}
        args = args_of_turn(
            models, budget, activation_bytes, ram_budget, follows=workload is not None
        )
        if args is None:
            try:
                for model in models:
                    self._move(model)
            except BaseException:
                self.close()
                raise
            return
        how: dict[str, Any] = {"device": device, "workload": workload}
        if len(models) == 1:
            self._swap = swap_blocks(models[0], args, **how)
        else:
            self._swap = swap_experts(models, args, **how)

    @property
    def plan(self) -> SwapPlan | None:
        """Of the blocks; None for models that are there whole."""
        if self._swap is None:
            return None
        swap: Any = self._swap if not isinstance(self._swap, tuple) else self._swap[0]
        found: SwapPlan = swap.plan
        return found

    @undisturbed()
    def close(self) -> None:
        """Takes the models off the device; what was changed there is changed in host memory."""
        if self._swap is not None:
            self._swap.close()
        for place, before, there, version in self._moved:
            now = place.table[place.name]
            if now is not there:
                continue  # another weight hangs there by now, and stays
            if there._version != version or not isinstance(before, torch.nn.Parameter):
                with torch.inference_mode(before.is_inference()), torch.no_grad():
                    before.copy_(there)
            place.table[place.name] = before
        self._swap = None
        self._moved.clear()
        self._take_along()
        settle(self._device)

    def _on_device(self) -> Iterator[tuple[Place, torch.Tensor]]:
        for model in self._models:
            for place in list(places_of(model)):
                tensor = place.table[place.name]
                if tensor is not None and tensor.device == self._device:
                    yield place, tensor

    def _take_along(self) -> None:
        """What came into the models during their turn, such as a LoRA, leaves with them."""
        if self._device.type == "cpu":
            return
        for place, tensor in self._on_device():
            if id(tensor) not in self._before:
                there: torch.Tensor = tensor.detach().to("cpu")
                if isinstance(tensor, torch.nn.Parameter):
                    there = torch.nn.Parameter(there, requires_grad=tensor.requires_grad)
                place.table[place.name] = there

    @undisturbed()
    def _move(self, model: torch.nn.Module) -> None:
        """Copies to the device hang in the places of the originals; one object stays one."""
        made: dict[int, torch.Tensor] = {}
        for place in list(places_of(model)):
            before = place.table[place.name]
            if before is None or before.device == self._device or before.is_meta:
                continue
            if id(before) not in made:
                there = before.detach().to(self._device)
                if isinstance(before, torch.nn.Parameter):
                    there = torch.nn.Parameter(there, requires_grad=before.requires_grad)
                made[id(before)] = there
            there = made[id(before)]
            place.table[place.name] = there
            self._moved.append((place, before, there, there._version))


def args_of_turn(
    models: Sequence[torch.nn.Module],
    budget: int | None,
    activation_bytes: int,
    ram_budget: int | None,
    *,
    follows: bool,
) -> BlockSwapArgs | None:
    """How models are streamed in their turn; None: they are there whole.

    `follows`: their plan knows the clip, and counts its activations itself.
    """
    if budget is None or sum(map(device_bytes, models)) + activation_bytes <= budget:
        return None
    room = budget if follows else max(0, budget - activation_bytes)
    return BlockSwapArgs(vram_budget=room, ram_budget=ram_budget)


def weight_bytes(model: torch.nn.Module) -> int:
    """Of parameters and buffers, each once."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def device_bytes(model: torch.nn.Module) -> int:
    """Of the same, as the device's allocator counts them."""
    return sum(rounded(tensor.nbytes) for tensor in [*model.parameters(), *model.buffers()])


def rounded(nbytes: int) -> int:
    """As a device's allocator counts a tensor."""
    return align_up(nbytes, GRANULARITY_BYTES)


@contextmanager
def turn_of_encoder(path: Any, device: torch.device, args: BlockSwapArgs) -> Iterator[Any]:
    """A text encoder of the library runs on `device` inside, streamed from its own files.

    Raises what `open_text_encoder` raises.
    """
    model: Any = open_text_encoder(path, args, device=device)
    try:
        yield model
    finally:
        model.blockswap.close()
        settle(device)


@contextmanager
def turn_of(
    model: torch.nn.Module, device: torch.device, *, budget: int | None, activation_bytes: int
) -> Iterator[torch.nn.Module]:
    """`model` has its turn inside, as `Turn` gives it; afterwards it has no weights any more."""
    turn = Turn([model], device, budget=budget, activation_bytes=activation_bytes)
    try:
        yield model
    finally:
        turn.close()
        leave(model, device)


def leave(model: torch.nn.Module, device: torch.device) -> None:
    """Takes the model's weights from wherever they are, and gives cached memory back."""
    for place in list(places_of(model)):
        tensor = place.table[place.name]
        if tensor is not None and tensor.device.type != "meta":
            place.table[place.name] = _emptied(tensor)
    settle(device)


def settle(device: torch.device) -> None:
    """What is no longer referred to is given back before the next model comes."""
    gc.collect()
    where = open_device(device)
    where.synchronize()
    where.empty_cache()


def _emptied(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(empty, requires_grad=False)
    return empty
