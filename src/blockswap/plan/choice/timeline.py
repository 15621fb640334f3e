"""The timeline that a choice would have as a plan: the same, with nothing else worked out."""

from collections.abc import Sequence

from ..inputs.foresight import Speeds
from ..inputs.unit_sizes import UnitFacts
from ..swap_plan import Tier
from ..timing.forward_time import stage_of
from ..timing.pipeline import Pipeline, Stage
from .budgets import Question
from .plan_bytes import planned_unit, staging_of

_TIERS: tuple[Tier, ...] = ("resident", "ram", "disk")


class Timeline:
    """Lines up what each unit takes in each tier; a search asks for thousands of lines."""

    def __init__(self, question: Question, speeds: Speeds) -> None:
        self._question = question
        self._rest_seconds = speeds.rest_seconds
        self._on_host = on_host = question.facts.on_host
        self._stages: list[tuple[str, dict[Tier, Stage]]] = [
            (
                unit.name,
                {t: stage_of(planned_unit(unit, t), speeds, on_host=on_host) for t in _TIERS},
            )
            for unit in question.facts.units
        ]

    def line(self, streamed: Sequence[UnitFacts], slots: int) -> Pipeline:
        """The forward that streams exactly these, through at most so many slots."""
        tiers = self._question.room.tiers(streamed)
        names = (unit.name for unit in streamed)
        placed: dict[str, Tier] = dict(zip(names, tiers, strict=True))
        slots = min(slots, len(streamed))
        return Pipeline(
            stages=tuple([forms[placed.get(n, "resident")] for n, forms in self._stages]),
            slots=slots,
            prefetch=max(slots - 1, 0),
            # Where nothing is read, nothing has to wait for a staging buffer.
            staging_buffers=self._staging(streamed) if "disk" in tiers else 0,
            rest_seconds=self._rest_seconds,
            on_host=self._on_host,
        )

    def _staging(self, streamed: Sequence[UnitFacts]) -> int:
        return staging_of(self._question, streamed).buffers
