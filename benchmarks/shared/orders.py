"""Owns what a forecast for a card is asked: one clip, with all of the card's memory free."""

from blockswap.forecast import Order, find_model
from blockswap.plan.inputs.machine import Machine
from blockswap.predict import Companions
from blockswap.predict.subject import Wish


def order_on(
    machine: Machine, model: str, clip: tuple[int, int, int], companions: Companions | None = None
) -> Order:
    """A clip of (width, height, frames) by a published model on that machine."""
    found = find_model(model)
    width, height, frames = clip
    return Order(
        model=found,
        workload=found.subject.clip(Wish((width, height), frames)),
        machine=machine,
        companions=companions or Companions(),
        device_free_bytes=machine.device_bytes,
    )
