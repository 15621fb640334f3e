"""Bytes on the device: what the host is asked to find room for, and what it grants."""

from typing import Any

from ...layout.slab import align_up
from ...plan import SwapPlan
from ...units import format_bytes
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


def plan_sentence(plan: SwapPlan, granted_bytes: int) -> str:
    """What stays, what is streamed, and whether weights and slots fit in what is granted now."""
    stay, streamed = len(plan.residents), len(plan.streamed)
    said = f"plan: {stay} of {stay + streamed} units stay, {streamed} are streamed"
    if streamed:
        said += f" ({format_bytes(plan.streamed_bytes)}), {plan.map_words()}"
    need = f"{format_bytes(plan.device_bytes)} of weights and slots on {plan.device}"
    if plan.device_bytes <= granted_bytes:
        return f"{said}; {need} fit in the {format_bytes(granted_bytes)} that are free now"
    return (
        f"{said}; {need}, {format_bytes(granted_bytes)} are free now: other models leave for it, "
        "or ComfyUI keeps a part in RAM"
    )
