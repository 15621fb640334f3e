"""The README's table "your card, your clip": each row is one `blockswap plan`, nothing is measured.

python -m benchmarks.forecasts            # prints the table; --write puts it into the README
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blockswap import Workload
from blockswap.errors import PlanError
from blockswap.forecast import Order, find_model, forecast, largest_clip
from blockswap.plan.inputs.cards import find_card, machine_of_card
from blockswap.predict import Companions
from blockswap.units import format_bytes, format_seconds

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- forecasts: begin -->", "<!-- forecasts: end -->"
HEAD = (
    "| card | model and clip | streamed | peak on the card | pinned RAM | a forward, forecast |\n"
    "|---|---|---|---|---|---|\n"
)


@dataclass(frozen=True, slots=True)
class Row:
    """A card, a model and a clip."""

    card: str
    model: str
    clip: tuple[int, int, int]

    @property
    def command(self) -> str:
        """What a person types for the same figures."""
        width, height, frames = self.clip
        return (
            f'blockswap plan --gpu "{self.card}" --model {self.model} '
            f"--size {width}x{height} --frames {frames} --vae-tiled --text-encoder cpu"
        )

    def order(self) -> Order:
        machine = machine_of_card(find_card(self.card))
        return Order(
            model=find_model(self.model),
            workload=Workload(*self.clip),
            machine=machine,
            companions=Companions(vae_tiled=True, text_encoder_on_host=True),
            device_free_bytes=machine.device_bytes,
        )

    def line(self) -> str:
        """The row in Markdown."""
        width, height, frames = self.clip
        head = f"| {self.card} | {self.model}, {width}x{height}, {frames} frames | "
        try:
            told = forecast(self.order())
        except PlanError:
            clip = largest_clip(self.order())
            fits = f"{clip.frames} frames do" if clip else "no clip of this size does"
            return f"{head}does not fit: {fits} | | | |"
        plan, timing = told.plan, told.plan.timing
        assert plan.peak_bytes is not None, "a forecast knows its workload"
        assert timing is not None, "a card has a rate"
        waits = timing.exposed_seconds / timing.step_seconds
        return (
            f"{head}{told.blocks_to_swap} of {told.order.model.geometry.num_layers} blocks | "
            f"{format_bytes(plan.peak_bytes)} | {format_bytes(plan.pinned_bytes)} | "
            f"{format_seconds(timing.step_seconds)}, {waits:.1%} waiting |"
        )


ROWS = (
    Row("RTX 4060", "wan2.1-t2v-1.3b", (832, 480, 81)),
    Row("RTX 4060", "wan2.2-t2v-a14b", (832, 480, 81)),
    Row("RTX 4060", "wan2.2-t2v-a14b", (1280, 720, 81)),
    Row("RTX 3060 12GB", "wan2.2-t2v-a14b", (832, 480, 81)),
    Row("RTX 4070", "wan2.2-t2v-a14b", (1280, 720, 81)),
    Row("RTX 3090", "wan2.2-i2v-a14b", (1280, 720, 81)),
    Row("RTX 4090", "wan2.2-t2v-a14b", (1280, 720, 81)),
    Row("RTX 5090", "wan2.2-t2v-a14b", (1280, 720, 81)),
)


def table(rows: Sequence[Row] = ROWS) -> str:
    """All rows in Markdown."""
    return HEAD + "\n".join(row.line() for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, or writes it between its marks in the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="into the README")
    made = table()
    if parser.parse_args(arguments).write:
        text = README.read_text()
        before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
        README.write_text(f"{before}\n{made}\n{after}")
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
