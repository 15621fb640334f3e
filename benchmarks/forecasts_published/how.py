"""Makes the forecast of one published run, in seconds."""

from dataclasses import replace

from benchmarks.forecasts_published.what import Run
from benchmarks.shared.orders import order_on
from blockswap.forecast import forecast
from blockswap.plan.inputs.cards import find_card, machine_of_card


def forecast_seconds(run: Run) -> float:
    """Every forward at the forecast's pace, streamed where the card is too small."""
    machine = machine_of_card(find_card(run.card))
    if run.fp8:  # its tensor cores do twice as many products of 8 bits; attention stays
        flops = tuple((dtype, 2 * rate) for dtype, rate in machine.flops)
        machine = replace(machine, flops=flops)
    timing = forecast(order_on(machine, run.model, run.clip)).plan.timing
    assert timing is not None, "a card has a rate"
    return 2 * run.steps * timing.step_seconds
