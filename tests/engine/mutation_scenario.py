"""The scenario that every mutation test runs twice, and what it finds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from cases import Shelf, inputs, opened, reference

from blockswap.stream.pool.pool import Pool
from engine_seams import wait_for_readers

ARGS = {"blocks_to_swap": 5, "prefetch_blocks": 2}


class Scenario:
    """Runs a model and says what was found: race kinds, and whether an output was wrong."""

    def __init__(self, sim: Any, mode: str, pools: list[Pool], shelf: Shelf) -> None:
        self.sim = sim
        self.mode = mode
        self.device = torch.device("sim", 0)
        self.pools = pools
        self.shelf = shelf

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """Collects what goes wrong inside, instead of raising it."""
        found: list[str] = []
        self.sim.configure(mode=self.mode, races="record", unrecorded_waits="record")
        self.sim.reset()
        try:
            yield found
            torch.accelerator.synchronize()
            found += [race.kind for race in self.sim.races()]
        finally:
            self.sim.configure(mode=self.mode, races="off", unrecorded_waits="off")
            self.sim.reset()

    def forwards(
        self,
        store: str,
        meddle: Callable[[Pool], None] | None = None,
        *,
        count: int = 4,
        args: dict[str, Any] = ARGS,
    ) -> list[str]:
        """Forwards of the mini model from `store`, without waiting in between."""
        expected = reference("mini", self.device)
        given = inputs("mini", self.device)
        with (
            self.watched() as found,
            opened(store, "mini", self.device, args, shelf=self.shelf) as (model, _),
            torch.no_grad(),
        ):
            if meddle is not None:
                meddle(self.pools[-1])
            outs = [model(**given) for _ in range(count)]
            wait_for_readers(self.pools[-1])
            torch.accelerator.synchronize()
            found += ["output" for out in outs if not torch.equal(out.cpu(), expected)]
        return found
