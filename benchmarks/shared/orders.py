"""Owns what a forecast for a card is asked: one clip, with all of the card's memory free."""

from blockswap import Workload
from blockswap.forecast import Order, find_model
from blockswap.plan.inputs.machine import Machine
from blockswap.plan.inputs.workload import has_token_timesteps
from blockswap.predict import Companions


def order_on(
    machine: Machine, model: str, clip: tuple[int, int, int], companions: Companions | None = None
) -> Order:
    """A clip of (width, height, frames) by a published model on that machine."""
    found = find_model(model)
    each = has_token_timesteps(found.geometry)
    return Order(
        model=found,
        workload=Workload(*clip, per_token_timestep=each),
        machine=machine,
        companions=companions or Companions(),
        device_free_bytes=machine.device_bytes,
    )
