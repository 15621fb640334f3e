"""The report of all ranks of one model: one row for each, what they have in common said once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .summary import Summary
from .words import say_bytes, say_seconds, say_share

HEAD = ("rank", "host", "device", "streamed", "copied", "read", "from ranks", "peak", "waiting",
        "a forward")  # fmt: skip


@dataclass(frozen=True, slots=True)
class RankSummary:
    """Each rank's report, by its number, and on which host it runs (0, 1 ...)."""

    summaries: Mapping[int, Summary]
    hosts: Mapping[int, int]

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """Texts for `HEAD`, a row for each rank."""
        return tuple(
            _row(rank, self.hosts[rank], summary) for rank, summary in self.summaries.items()
        )

    def sentences(self) -> tuple[str, ...]:
        """What was planned or noted, each once; of which ranks, where not of all."""
        said: dict[str, list[int]] = {}
        for rank, summary in self.summaries.items():
            for sentence in (*summary.plan_sentences, *summary.measured_sentences):
                said.setdefault(sentence, []).append(rank)
        return tuple(
            sentence if len(ranks) == len(self.summaries) else f"{_named(ranks)}: {sentence}"
            for sentence, ranks in said.items()
        )

    def text(self) -> str:
        """The table and the sentences as one text without a newline at its end."""
        table = [HEAD, *self.rows()]
        widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
        lines = ["  ".join(map(str.rjust, row, widths)).rstrip() for row in table]
        return "\n".join((*lines, *(f"- {sentence}" for sentence in self.sentences())))

    def __str__(self) -> str:
        return self.text()

    def to_dict(self) -> dict[str, Any]:
        """Dictionaries, lists, numbers and texts, ready for `json.dumps`."""
        return {
            str(rank): {"host": self.hosts[rank], **summary.to_dict()}
            for rank, summary in self.summaries.items()
        }


def _row(rank: int, host: int, summary: Summary) -> tuple[str, ...]:
    traffic, times, place = summary.traffic, summary.times, summary.placement
    peaks = summary.peaks
    share = times.waiting_share
    return (
        str(rank),
        str(host),
        place.device,
        f"{len(place.streamed)} of {len(place.units)}",
        say_bytes(traffic.copied_bytes),
        say_bytes(traffic.read_bytes),
        say_bytes(traffic.gathered_bytes),
        say_bytes(peaks.host_bytes if place.on_host else peaks.device_bytes),
        "not measured" if share is None else say_share(share),
        say_seconds(times.forward_seconds),
    )


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
