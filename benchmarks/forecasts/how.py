"""Makes the forecast of one row: a plan, or that none fits and which clip would."""

from benchmarks.forecasts.what import Row
from benchmarks.shared.orders import order_on
from blockswap import Workload
from blockswap.errors import PlanError
from blockswap.forecast import Forecast, Order, forecast, largest_clip
from blockswap.plan.inputs.cards import find_card, machine_of_card
from blockswap.predict import Companions

COMPANIONS = Companions(vae_tiled=True, text_encoder_on_host=True)


def order(row: Row) -> Order:
    return order_on(machine_of_card(find_card(row.card)), row.model, row.clip, COMPANIONS)


def foreseen(row: Row) -> Forecast | Workload | None:
    """The forecast; where nothing fits the largest clip that does, None where none does."""
    try:
        return forecast(order(row))
    except PlanError:
        return largest_clip(order(row))
