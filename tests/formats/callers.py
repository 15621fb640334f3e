"""Who calls a model: plainly, with guidance, or through a cache that skips blocks or parts."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from files import inputs

from skipping import SKIPPING

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
    hooked = CALLERS[caller] is not None
    passes = ("cond", "uncond") if caller == "two passes" else ("cond",)
    for step in range(first, first + count):
        for name in passes:
            with model.cache_context(name) if hooked else nullcontext(), torch.no_grad():
                yield model(**_inputs(kind, device, caller, 7 * step + len(name)))[0].cpu()


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
