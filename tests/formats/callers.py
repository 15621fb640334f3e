"""Who calls a model: plainly, with guidance, or through a cache that skips blocks or parts."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from files import inputs

from skipping import SKIPPING, clip

STEPS = 4
# Hooks that skip; None: the model is called as it is.
CALLERS: dict[str, Callable[[Any, int], None] | None] = {
    "plain": None,
    "batch": None,
    "two passes": None,
    **SKIPPING,
}


def steps(
    model: Any, kind: str, device: torch.device, caller: str, count: int = STEPS, first: int = 0
) -> Iterator[torch.Tensor]:
    """Outputs of `count` steps of a clip, from step `first` on."""

    def run(seed: int) -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = model(**_inputs(kind, device, caller, seed))[0].cpu()
        return output

    passes = 2 if caller == "two passes" else 1
    hooked = CALLERS[caller] is not None
    return clip(model, run, steps=range(first, first + count), passes=passes, hooked=hooked)


def _inputs(kind: str, device: torch.device, caller: str, seed: int) -> dict[str, Any]:
    """One step's; of a batch both prompts go through one forward."""
    given = inputs(kind, device, seed=seed)
    if caller != "batch":
        return given
    other = inputs(kind, device, seed=seed + 1)
    return {
        name: torch.cat([value, other[name]]) if isinstance(value, torch.Tensor) else value
        for name, value in given.items()
    }
