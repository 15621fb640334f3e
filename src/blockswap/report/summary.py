"""The report of a swap, planned beside measured: text rows, a status line, or JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from ..events import Measured
from ..plan.swap_plan import SwapPlan
from .figures import (
    Group,
    Peaks,
    Placement,
    Times,
    Traffic,
    peaks_of,
    placement_of,
    times_of,
    traffic_of,
)
from .words import (
    NOT_MEASURED,
    count_of,
    is_block,
    name_runs,
    say_bytes,
    say_rate,
    say_seconds,
    say_share,
)

_LATE_NAMED = 4  # more forwards with a stall than this are counted, not named


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything a person is told about a swap. Bytes and seconds; unmeasured figures are None.

    Hidden and exposed seconds are defined in `blockswap.report.spans`: exposed is the time the
    compute stream waited for a block, hidden is the rest of the time in which its bytes moved.
    """

    placement: Placement
    traffic: Traffic
    times: Times
    peaks: Peaks
    plan_sentences: tuple[str, ...]
    measured_sentences: tuple[str, ...]

    def status_line(self) -> str:
        """One line: `30 of 40 blocks streamed · 8.1 GiB kept off the device · 0.3 % waiting`.

        Where blocks run in pieces, it ends with ` · in pieces of 4,096 tokens`.
        """
        place = self.placement
        pieces = place.chunk_tokens
        cut = f" · in pieces of {pieces:,} tokens" if pieces else ""
        if place.on_host and not place.streamed:
            where = "on the CPU the weights are used where they lie in RAM"
            return f"{_streamed_words(place)} streamed: {where}{cut}"
        # The blocks on disk less the slots they come through: more is on disk than is saved.
        kept = "of RAM saved" if place.on_host else "kept off the device"
        share = self.times.waiting_share
        waiting = "waiting not measured" if share is None else f"{say_share(share)} waiting"
        kept_off = f"{say_bytes(place.kept_off_bytes)} {kept}"
        return f"{_streamed_words(place)} streamed · {kept_off} · {waiting}{cut}"

    def rows(self) -> tuple[tuple[str, str], ...]:
        """Pairs of (what, figures), the same that `text` prints; a table can be made of them."""
        notes = (("plan", self.plan_sentences), ("note", self.measured_sentences))
        return (
            *_placement_rows(self.placement),
            *_traffic_rows(self.traffic),
            *_times_rows(self.times, self.placement.prefetch),
            *_peaks_rows(self.peaks),
            *((label, sentence) for label, sentences in notes for sentence in sentences),
        )

    def lines(self) -> tuple[str, ...]:
        """The status line, then one line a row."""
        title = f"block swap on {self.placement.device}: {self.status_line()}"
        return (title, *(f"  {label:<11}{words}" for label, words in self.rows()))

    def text(self) -> str:
        """All lines as one text without a newline at its end."""
        return "\n".join(self.lines())

    def to_dict(self) -> dict[str, Any]:
        """A value of dictionaries, lists, numbers and texts, ready for `json.dumps`."""
        share = {"waiting_share": self.times.waiting_share, "status": self.status_line()}
        told = asdict(self) | share
        del told["placement"]["map_words"]  # a program takes `block_map`
        return told

    def __str__(self) -> str:
        return self.text()


def summarise(plan: SwapPlan, measured: Measured) -> Summary:
    """Puts the plan and what was measured side by side; pure, raises nothing."""
    return Summary(
        placement=placement_of(plan),
        traffic=traffic_of(plan, measured),
        times=times_of(plan, measured),
        peaks=peaks_of(plan, measured),
        plan_sentences=plan.sentences,
        measured_sentences=measured.sentences,
    )


def _streamed_words(place: Placement) -> str:
    blocks = sum(is_block(name) for name in place.units)
    streamed = sum(is_block(name) for name in place.streamed)
    words = f"{streamed} of {count_of(blocks, 'block')}"
    embedders = len(place.streamed) - streamed
    return f"{words} and {count_of(embedders, 'embedder')}" if embedders else words


def _placement_rows(place: Placement) -> list[tuple[str, str]]:
    def told(group: Group) -> str:
        if not group.names:
            return "none"
        return f"{len(group.names)} ({say_bytes(group.nbytes)}): {name_runs(group.names)}"

    ram = "in RAM" if place.on_host else "from RAM"
    rows = [
        ("blocks", f"{place.map_words}  (R resident, m {ram}, d from disk)"),
        ("resident", told(place.resident)),
        (ram, told(place.ram)),
        ("from disk", told(place.disk)),
    ]
    if place.slots:
        slots = f"{place.slots} of {say_bytes(place.slot_bytes)}, prefetch {place.prefetch}"
    else:
        slots = f"none, prefetch {place.prefetch}"
    return [*rows, ("slots", slots)]


def _traffic_rows(traffic: Traffic) -> list[tuple[str, str]]:
    def told(total: int, count: str, per_forward: int | None, planned: int) -> str:
        return (
            f"{say_bytes(total)} in {count}; a forward {say_bytes(per_forward)},"
            f" planned {say_bytes(planned)}"
        )

    copied = told(
        traffic.copied_bytes,
        count_of(traffic.copies, "copy", "copies"),
        traffic.copied_bytes_per_forward,
        traffic.planned_copied_bytes_per_forward,
    )
    read = told(
        traffic.read_bytes,
        count_of(traffic.reads, "read"),
        traffic.read_bytes_per_forward,
        traffic.planned_read_bytes_per_forward,
    )
    rows = []
    for label, words, moved, planned, rate in (
        ("copied", copied, traffic.copied_bytes, traffic.planned_copied_bytes_per_forward,
         traffic.copy_bytes_per_second),
        ("read", read, traffic.read_bytes, traffic.planned_read_bytes_per_forward,
         traffic.read_bytes_per_second),
    ):  # fmt: skip
        if moved or planned:
            rows.append((label, f"{words}; rate {say_rate(rate)}"))
        else:
            rows.append((label, "nothing, as planned"))
    if traffic.gathers:
        count = count_of(traffic.gathers, "gather")
        rows.append(
            ("gathered", f"{say_bytes(traffic.gathered_bytes)} from other ranks in {count}")
        )
    if traffic.realigned_bytes:
        moved_once_more = say_bytes(traffic.realigned_bytes)
        rows.append(("moved", f"{moved_once_more} once more, for the file laid them unaligned"))
    return rows


def _times_rows(times: Times, prefetch: int) -> list[tuple[str, str]]:
    over = f"{count_of(times.timed_visits, 'visit')} of {count_of(times.forwards, 'forward')}"
    rows = [
        ("compute", f"{say_seconds(times.compute_seconds)} in {over}"),
        ("transfer", _transfer_words(times)),
    ]
    if times.planned_forward_seconds is not None:
        forecast = say_seconds(times.planned_forward_seconds)
        rows.append(
            ("a forward", f"{say_seconds(times.forward_seconds)} in blocks, forecast {forecast}")
        )
    if times.untimed_visits:
        untimed = f"{times.untimed_visits} of {count_of(times.visits, 'visit')}"
        rows.append(("untimed", f"{untimed}, left out of seconds and rates"))
    rows.append(("on demand", _on_demand_words(times, prefetch)))
    if times.host_waits:
        waits = f"the forward thread waited {count_of(times.host_waits, 'time')} for a file read"
        rows.append(("host", waits))
    return rows


def _transfer_words(times: Times) -> str:
    words = (
        f"hidden {say_seconds(times.hidden_seconds)}, exposed {say_seconds(times.exposed_seconds)}"
    )
    if times.waiting_share is not None:
        words += f" ({say_share(times.waiting_share)} of the time in blocks was waiting)"
    if times.unmeasured_transfers:
        missing = count_of(times.unmeasured_transfers, "transfer")
        words += f"; {missing} not measured and not in hidden"
    return words


def _on_demand_words(times: Times, prefetch: int) -> str:
    if not times.visits:
        return NOT_MEASURED
    if not times.on_demand:
        return "none: every transfer was asked for before its block was entered"
    why = (
        "the first blocks after opening, or blocks run out of their planned order"
        if prefetch
        else "prefetch is 0: each block is fetched when it is entered"
    )
    words = f"{count_of(times.on_demand, 'visit')} not fetched ahead ({why})"
    by_forward: dict[int, list[str]] = {}
    for forward, unit in times.late:
        by_forward.setdefault(forward, []).append(unit)
    named = [f"forward {f}: {name_runs(names)}" for f, names in by_forward.items()]
    if named:
        words += "; bytes moved only after entry in " + " | ".join(named[:_LATE_NAMED])
    if len(named) > _LATE_NAMED:
        words += f" and in {count_of(len(named) - _LATE_NAMED, 'more forward')}"
    return words


def _peaks_rows(peaks: Peaks) -> list[tuple[str, str]]:
    planned = f"weights and slots planned {say_bytes(peaks.planned_device_bytes)}"
    if peaks.planned_peak_bytes is not None:
        planned = f"forecast {say_bytes(peaks.planned_peak_bytes)}; {planned}"
    reserve = f"{say_bytes(peaks.reserve_bytes)} left to activations"
    host = f"pinned {say_bytes(peaks.pinned_bytes)}, staging {say_bytes(peaks.staging_bytes)}"
    return [
        ("device", f"peak {say_bytes(peaks.device_bytes)}; {planned}, {reserve}"),
        ("host", f"peak {say_bytes(peaks.host_bytes)}; planned {host}"),
    ]
