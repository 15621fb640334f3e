"""Bytes on the device: what the host is asked to find room for, and what it grants."""

from typing import Any

from ...layout.slab import align_up
from ...plan import SwapPlan
from ..seams import host

_UNBOUNDED = 1e31  # the host says 1e32 where it sets no limit


def whole_size(model: Any) -> int:
    """Bytes of all weights of a model, as the host counts them."""
    return host.weight_bytes(model)


def size_with(plan: SwapPlan, whole: int) -> int:
    """Bytes on the device under a plan: slots in place of the streamed units."""
    if not plan.slots:
        return whole  # nothing is streamed, or the blocks are used where they lie
    return whole - plan.streamed_bytes + plan.slots * align_up(plan.slot_bytes, 512)


def granted_by_host(device: Any, lowvram_model_memory: float) -> int:
    """Bytes that the host lets weights take on the device, less a margin.

    Allocators round, and other programs come and go: at the brim the host would take residents
    off the device again before the next run.
    """
    room = lowvram_model_memory
    if not 0 < room < _UNBOUNDED:
        return granted_of(host.free_bytes(device))
    return max(int(room * 63 / 64), 0)


def granted_of(free_bytes: float) -> int:
    """The same where the host sets no limit but what is free."""
    return max(int((free_bytes - host.inference_bytes()) * 63 / 64), 0)
