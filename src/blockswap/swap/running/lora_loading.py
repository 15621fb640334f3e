"""LoRAs loaded into a swapped model by the host library: where their weights go, and what is said.

Base weights are not touched: each layer computes its own product and adds the LoRA's, as it does
in the model that is not swapped. The LoRA's weights stay on the device, beside the plan.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch

from ...adapters.diffusers_seam import FIRST_FACTOR, LOADING_CALL, SECOND_FACTOR
from ...adapters.live import LiveModel
from ...ambient import undisturbed
from ...errors import CheckpointError
from ...stream.model.hooks import Hooks, Uncopyable
from ...stream.model.idle_weights import seen_on
from ...units import format_bytes
from .handle import Swap


class LoraLoading(Uncopyable):
    """Stands in front of the host library's call that loads a LoRA into the model."""

    def __init__(self, live: LiveModel, swap: Swap, hooks: Hooks, device: torch.device) -> None:
        self._root = live.root
        self._swap = swap
        self._hooks = hooks
        self._device = device
        # Weakly: a LoRA that is taken out again takes its memory with it.
        self._placed = swap.loaded_beside

    def install(self, undo: ExitStack) -> None:
        """From here on, until `undo`; does nothing for a model that cannot load LoRAs."""
        before = getattr(self._root, LOADING_CALL, None)
        if not callable(before) or LOADING_CALL in vars(self._root):
            return
        self._load: Callable[..., Any] = before
        setattr(self._root, LOADING_CALL, self)
        undo.callback(self._give_back)
        self._move(self._device)  # those of before, where the model was opened anew

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Loads as ever, without asking base weights for data that they do not have here.

        The library makes a LoRA's weights where the base weight is, in its dtype. Where that has no
        data they come straight from the file (`low_cpu_mem_usage`) and to the device.
        """
        had = {(id(module), name) for module, name in self._parameters()}
        with self._hooks.names_only(), seen_on(self._device):
            loaded = self._load(*args, **{**kwargs, "low_cpu_mem_usage": True})
        new = [(m, name) for m, name in self._parameters() if (id(m), name) not in had]
        with undisturbed():
            self._begin(new)
            self._root.to(self._device)
        self._placed += [(weakref.ref(module), name) for module, name in new]
        added = (module._parameters[name] for module, name in new)
        self._say(sum(parameter.nbytes for parameter in added if parameter is not None))
        return loaded

    def _begin(self, new: list[tuple[torch.nn.Module, str]]) -> None:
        """Gives what the file lacks the zeros that the library would begin it with.

        A LoRA with a bias for one layer has one for each, and a layer that lacks one was not cast
        as the others were. Raises CheckpointError for what the library would draw at random, after
        the adapter is gone again.
        """
        root: Any = self._root
        paths = {id(module): path for path, module in root.named_modules()}
        for module in {id(m): m for m, name in new if _is_missing(m, name)}.values():
            path = paths[id(module)]
            if SECOND_FACTOR not in path:
                root.delete_adapters(path.rpartition(".")[2])
                raise CheckpointError(
                    f"the LoRA lacks {path}, and its other factor is there: the file is damaged, "
                    "download it again"
                )
            other = root.get_submodule(path.replace(SECOND_FACTOR, FIRST_FACTOR))
            for name, own in module._parameters.items():
                if own is not None:
                    given = torch.zeros_like(own, device=self._device) if own.is_meta else own.data
                    given = given.to(other.weight.dtype)
                    module._parameters[name] = torch.nn.Parameter(given, own.requires_grad)

    def _parameters(self) -> Iterator[tuple[torch.nn.Module, str]]:
        for module in self._root.modules():
            for name in module._parameters:
                yield module, name

    def _say(self, nbytes: int) -> None:
        if nbytes:
            self._swap.tell(
                f"a LoRA was loaded: {format_bytes(nbytes)} of it stay on {self._device}, beside "
                "what was planned"
            )

    def _give_back(self) -> None:
        """The model is in host memory again, and so is what was loaded into it."""
        if vars(self._root).get(LOADING_CALL) is self:  # else someone has wrapped it meanwhile
            delattr(self._root, LOADING_CALL)
        self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        for reference, name in self._placed:
            module = reference()
            parameter = None if module is None else module._parameters.get(name)
            if parameter is not None and not parameter.is_meta:
                parameter.data = parameter.data.to(device)


def _is_missing(module: torch.nn.Module, name: str) -> bool:
    parameter = module._parameters[name]
    return parameter is not None and parameter.is_meta
