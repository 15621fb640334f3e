"""`BlockSwapStrategy`: who leaves, and who is streamed, under diffusers' ComponentsManager."""

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import StateError
from ..selection import BlockSwapArgs
from ..stream.device import open_device
from .turn import Turn, device_bytes


class BlockSwapStrategy:
    """An `offload_strategy` for `ComponentsManager.enable_auto_cpu_offload`.

    Models of modular pipelines take turns: when one is called, all others leave, and one that does
    not fit `vram_budget` beside `reserve` bytes for what it computes has its blocks streamed.
    `close()` gives a streamed model back; do it before the manager is told to disable offloading.
    `streamed` counts the turns of each model whose blocks were.
    """

    def __init__(
        self, vram_budget: int | str | None = None, *, reserve: int | str = 0, workload: Any = None
    ) -> None:
        self._args = BlockSwapArgs(vram_budget=vram_budget)
        self._reserve = BlockSwapArgs(vram_budget=reserve).vram_budget_bytes or 0
        self._workload = workload
        self.streamed: dict[str, int] = {}
        self._model: torch.nn.Module | None = None
        self._turn: Turn | None = None

    def __call__(
        self, hooks: Sequence[Any], model_id: str, model: Any, execution_device: Any
    ) -> list[Any]:
        """The hooks of the models that leave now; `model` is there, or streamed, afterwards."""
        if model is self._model:
            return []
        self.close()
        device = torch.device(execution_device)
        for hook in hooks:
            hook.offload()
        where = open_device(device)
        where.empty_cache()
        budget = self._args.vram_budget_bytes
        budget = where.free_bytes() if budget is None else budget
        if budget is not None and device_bytes(model) + self._reserve > budget:
            self._turn = Turn(
                [model], device, budget=budget, activation_bytes=self._reserve,
                workload=self._workload,
            )  # fmt: skip
            self._model = model
            name = model_id.rpartition("_")[0] or model_id  # without the manager's number behind it
            self.streamed[name] = self.streamed.get(name, 0) + 1
        return []

    def close(self) -> None:
        """Takes the streamed model off the device."""
        turn, self._turn, self._model = self._turn, None, None
        if turn is not None:
            turn.close()

    def __deepcopy__(self, memo: Any) -> Any:
        raise StateError("a strategy holds the model that is on the device: make another one")
