"""Forecast seconds held against runs that others published: prints both and the error.

python -m benchmarks.forecasts_published

The forecast counts the forwards of guided steps (two each) in bf16, products in fp8 where the run
was told to be, with blocks streamed where the card is too small. Text encoder, VAE and loading are
not in it and may be in the published figures.
"""

import sys
from dataclasses import dataclass, replace

from blockswap import Workload
from blockswap.forecast import Order, find_model, forecast
from blockswap.plan.inputs.cards import find_card, machine_of_card
from blockswap.units import format_seconds


@dataclass(frozen=True, slots=True)
class Run:
    """A published run of guided steps: two forwards each."""

    card: str
    model: str
    clip: tuple[int, int, int]
    steps: int
    seconds: float
    said: str
    fp8: bool = False

    def forecast_seconds(self) -> float:
        """Every forward at the forecast's pace, streamed where the card is too small."""
        machine = machine_of_card(find_card(self.card))
        if self.fp8:  # its tensor cores do twice as many products of 8 bits; attention stays
            flops = tuple((dtype, 2 * rate) for dtype, rate in machine.flops)
            machine = replace(machine, flops=flops)
        order = Order(
            find_model(self.model), Workload(*self.clip), machine,
            device_free_bytes=machine.device_bytes,
        )  # fmt: skip
        timing = forecast(order).plan.timing
        assert timing is not None, "a card has a rate"
        return 2 * self.steps * timing.step_seconds

    def line(self) -> str:
        """The row in Markdown."""
        width, height, frames = self.clip
        told = self.forecast_seconds()
        return (
            f"| {self.card} | {self.model}, {width}x{height}x{frames}, {self.steps} guided steps, "
            f"{self.said} | {format_seconds(self.seconds)} | {format_seconds(told)} | "
            f"{told / self.seconds - 1:+.0%} |"
        )


RUNS = (
    Run("RTX 4090", "wan2.1-t2v-1.3b", (832, 480, 81), 50, 261, "dtype not told"),
    Run("RTX 4090", "wan2.1-i2v-14b", (832, 480, 81), 40, 738, "in fp8", fp8=True),
    Run("RTX 4090", "wan2.1-i2v-14b", (832, 480, 81), 40, 779, "second figure"),
    Run("RTX PRO 6000", "wan2.2-t2v-a14b", (832, 480, 81), 40, 479, "dtype not told"),
    Run("H800", "wan2.1-t2v-14b", (1280, 720, 81), 50, 1838, "50 steps assumed"),
)
HEAD = "| card | run | published | forecast | error |\n|---|---|---|---|---|"


def main() -> int:
    """Prints the table."""
    print(HEAD)
    for run in RUNS:
        print(run.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
