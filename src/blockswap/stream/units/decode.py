"""How stored dtypes become compute dtypes: a cast into one shared buffer, on the compute stream.

So far that is a cast. It runs on the compute stream, from the slot into one buffer that all
units share, so a stored form of any size costs one buffer of the compute form.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..pool.pool import Pool


class Decode:
    """Casts a unit's stored leaves, in any slot, into the pool's decode buffer."""

    def __init__(
        self, stored: Sequence[Sequence[torch.Tensor]], computed: Sequence[torch.Tensor]
    ) -> None:
        """`stored[s]` are the leaves as slot s holds them, `computed` where each is cast to."""
        self._pairs = [list(zip(computed, leaves, strict=True)) for leaves in stored]

    def run(self, pool: Pool, slot: int, stream: Any) -> None:
        """Enqueues the casts on `stream`, the current one."""
        if pool.decoded_on is not None and pool.decoded_on != stream:
            # A forward on another stream may still read the buffer that is overwritten here.
            pool.device.wait(stream, pool.decoded)
        for computed, stored in self._pairs[slot]:
            computed.copy_(stored)
