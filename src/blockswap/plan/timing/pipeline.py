"""The engine's schedule simulated: what waits for what, and the seconds of a steady forward.

    disk      |r0    |r1    |r2    |              reads, one after the other, in the order asked
    copies           |c0 |  |c1 |  |c2 |          after the read, and when the slot is free
    compute              |0       ||1      ||2    after the one before, and when its copy has ended

The rules are those of `stream`: reads run ahead as far as staging buffers are free; a copy waits
for a slot, the read, the copy before it and the slot's last forward, and one from RAM is not
enqueued before one whose read is late; a block waits for its copy. The host is never in the way,
except where it waits for a read. The engine on a virtual clock agrees with it to the last digits
wherever it has one order of events to follow.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from ...events import Visit
from ..swap_plan import Timing
from .in_turn import InTurn

# A forward takes as long as the one before it once the pipeline has filled; this is when to stop.
_LEAST_FORWARDS, _MOST_FORWARDS, _AVERAGED = 4, 24, 6
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Stage:
    """One unit of a forward. Seconds of its compute, of its copy to the device and of its read.

    A resident has neither copy nor read; a unit in RAM has no read; on the CPU there is no copy.
    `name`, `nbytes` (copied to the device) and `decode_seconds` (a part of the compute) are for a
    person to see.
    """

    compute_seconds: float
    streamed: bool = False
    copy_seconds: float = 0.0
    read_seconds: float = 0.0
    name: str = ""
    nbytes: int = 0
    decode_seconds: float = 0.0

    @property
    def tier(self) -> str:
        return ("disk" if self.read_seconds else "ram") if self.streamed else "resident"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Forwards of `stages` in order, one after the other without a pause.

    `rest_seconds` is compute outside the units, at the start of a forward. `slots` may be 0 where
    nothing is streamed. On the host (`on_host`) a block computes where the forward thread is.
    """

    stages: tuple[Stage, ...]
    slots: int
    prefetch: int
    staging_buffers: int = 0
    rest_seconds: float = 0.0
    on_host: bool = False

    def bound_seconds(self) -> float:
        """What this forward cannot beat, wherever its streamed stages stand.

        A slot serves one block at a time, to be copied and computed; the streamed blocks may be
        those that compute least.
        """
        computes = sorted(stage.compute_seconds for stage in self.stages)
        moving = self._moving()
        copies = sum(stage.copy_seconds for stage in moving)
        reads = sum(stage.read_seconds for stage in moving)
        slot_seconds = copies + sum(computes[: len(moving)])
        compute = self.rest_seconds + sum(computes)
        return max(compute, copies, reads, slot_seconds / max(self.slots, 1))

    def timing(self) -> Timing:
        """A forward in the steady state."""
        run = self._in_turn() or _Run(self)
        ends, exposed = [0.0], [0.0]
        while len(ends) <= _MOST_FORWARDS:
            run.forward()
            ends.append(run.now)
            exposed.append(run.exposed)
            if len(ends) > _LEAST_FORWARDS and _steady(ends):
                break
        last = 1 if _steady(ends) else min(_AVERAGED, len(ends) - 1)
        compute = self.rest_seconds + sum(s.compute_seconds for s in self.stages)
        return Timing(
            # A difference of two late moments: rounded, it may be less than what is in it.
            step_seconds=max(compute, (ends[-1] - ends[-1 - last]) / last),
            compute_seconds=compute,
            copy_seconds=sum(s.copy_seconds for s in self._moving()),
            read_seconds=sum(s.read_seconds for s in self._moving()),
            exposed_seconds=(exposed[-1] - exposed[-1 - last]) / last,
            rest_seconds=self.rest_seconds,
            decode_seconds=sum(s.decode_seconds for s in self.stages),
        )

    def visits(self, *, after: int = 4, forwards: int = 2) -> tuple[Visit, ...]:
        """What a report would show of `forwards` forwards once the pipeline has filled."""
        run = _Run(self)
        for _ in range(after + forwards):
            run.forward()
        return tuple(visit for visit in run.visits if visit.forward > after)

    def _in_turn(self) -> InTurn | None:
        """The forward without the clocks that only reads need, where nothing is read."""
        ahead = self.prefetch == self.slots - 1
        if self.on_host or not ahead or not self.slots or not self._moving():
            return None
        if any(stage.read_seconds for stage in self.stages):
            return None
        stages = [(s.compute_seconds, s.copy_seconds if s.streamed else None) for s in self.stages]
        return InTurn(stages, slots=self.slots, rest_seconds=self.rest_seconds)

    def _moving(self) -> Sequence[Stage]:
        """The streamed stages, unless all of them fit in the slots and stay there."""
        streamed = [stage for stage in self.stages if stage.streamed]
        return streamed if self.slots < len(streamed) else ()


def _steady(ends: Sequence[float]) -> bool:
    last, before = ends[-1] - ends[-2], ends[-2] - ends[-3]
    return abs(last - before) <= _SAME * max(last, before)


@dataclass(slots=True)
class _Slot:
    index: int
    occupant: int | None = None
    ready: float = 0.0
    free: float = 0.0
    job: "_Job | None" = None
    last_used: int = 0
    copied: tuple[float, float] | None = None  # of the copy made for the next visit
    read: tuple[float, float] | None = None


@dataclass(slots=True)
class _Job:
    """A read that was asked for, and the copy that follows it once it has a slot."""

    index: int
    stage: Stage
    asked: float
    buffer: int
    slot: _Slot | None = None
    read: tuple[float, float] | None = None


class _Run:
    """The clocks of the host, the compute stream, the copy stream and the disk."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._stages = pipeline.stages
        self._slots = [_Slot(index) for index in range(pipeline.slots)]
        self._after = _upcoming(pipeline.stages)
        self._jobs: deque[_Job] = deque()
        self._copied = [0.0] * max(1, pipeline.staging_buffers)
        self._staged: dict[int, _Job] = {}  # by buffer: read ahead, and without a slot
        self._host = self._compute = self._copies = self._disk = 0.0
        self._uses = 0
        self.exposed = 0.0
        self.visits: list[Visit] = []
        self._forwards = 0

    @property
    def now(self) -> float:
        """When the work so far ends on the device."""
        return self._compute

    def forward(self) -> None:
        self._forwards += 1
        self._run_for(self._pipeline.rest_seconds)
        for index, stage in enumerate(self._stages):
            if stage.streamed:
                self._visit(index, stage)
            else:
                self._fetch_ahead(index, self._pipeline.prefetch + 1, running=None)
                self._read_ahead(index)
                arrived = self._compute
                self._run_for(stage.compute_seconds)
                self._note(stage, None, arrived, arrived)

    def _visit(self, index: int, stage: Stage) -> None:
        slot = self._find(index)
        if slot is None:
            slot = self._evictable(set(), running=None)
            assert slot is not None, "a streamed stage has a slot to go to"
            self._load(index, slot)
        self._touch(slot)
        self._fetch_ahead(index, self._pipeline.prefetch, running=slot)
        if slot.job is not None:
            self._catch_up(self._host)
        self._read_ahead(index)
        if slot.job is not None:
            self._settle(slot)
            self._fetch_ahead(index, self._pipeline.prefetch, running=slot)
        arrived, start = self._compute, max(self._compute, slot.ready)
        self.exposed += start - arrived
        self._compute = start
        self._run_for(stage.compute_seconds)
        self._note(stage, slot, arrived, start)
        slot.free = self._compute
        self._touch(slot)
        self._fetch_ahead(index, self._pipeline.prefetch + 1, running=None)
        self._read_ahead(index)

    def _note(self, stage: Stage, slot: _Slot | None, arrived: float, started: float) -> None:
        copied = read = (None, None)  # type: tuple[float | None, float | None]
        if slot is not None:
            copied, read = slot.copied or copied, slot.read or read
            slot.copied = slot.read = None
        moved = copied[0] is not None
        self.visits.append(
            Visit(
                forward=self._forwards,
                unit=stage.name,
                tier=stage.tier,
                slot=None if slot is None else slot.index,
                copied_bytes=stage.nbytes if moved else 0,
                arrived=arrived,
                started=started,
                ended=self._compute,
                copy_started=copied[0],
                copy_ended=copied[1],
                read_started=read[0],
                read_ended=read[1],
            )
        )

    def _run_for(self, seconds: float) -> None:
        if self._pipeline.on_host:
            self._compute = max(self._compute, self._host)
        self._compute += seconds
        if self._pipeline.on_host:
            self._host = self._compute

    def _fetch_ahead(self, index: int, distance: int, *, running: _Slot | None) -> None:
        if not self._pipeline.prefetch:
            return
        wanted = self._after[index][:distance]
        self._catch_up(self._host)
        late = running is not None and running.job is not None
        for ahead in wanted:
            slot = self._find(ahead)
            if slot is None:
                if late and not self._stages[ahead].read_seconds:
                    return
                slot = self._evictable(set(wanted), running=running)
                assert slot is not None, "no more is wanted than there are slots for"
                self._load(ahead, slot)
            late = late or slot.job is not None

    def _read_ahead(self, index: int) -> None:
        """Asks for the next reads of units in no slot, while there are staging buffers for them."""
        if not self._pipeline.prefetch or self._pipeline.on_host:
            return
        self._catch_up(self._host)
        reads = (at for at in self._after[index] if self._stages[at].read_seconds)
        absent = (at for at in reads if self._find(at) is None)
        wanted = list(islice(absent, len(self._copied)))
        staged = {job.index for job in self._staged.values()}
        for at in wanted:
            claimed = {job.buffer for job in self._jobs}
            free = [b for b in range(len(self._copied)) if b not in claimed | set(self._staged)]
            if at not in staged and free:
                self._staged[free[0]] = self._ask(at, free[0])

    def _take_staged(self, index: int) -> _Job | None:
        """The unit's read, if it was read ahead: its buffer is free once its copy has ended."""
        for buffer, job in self._staged.items():
            if job.index == index:
                return self._staged.pop(buffer)
        return None

    def _next_buffer(self) -> int:
        """A free staging buffer, else the one whose copy is enqueued first."""
        count, pending = len(self._copied), [job.buffer for job in self._jobs]
        if len(pending) >= count:
            return pending[-count]
        return min(range(count), key=lambda buffer: (buffer in pending, self._copied[buffer]))

    def _ask(self, index: int, buffer: int) -> _Job:
        job = _Job(index, self._stages[index], self._host, buffer)
        self._jobs.append(job)
        return job

    def _load(self, index: int, slot: _Slot) -> None:
        stage = self._stages[index]
        slot.occupant, slot.job = index, None
        self._touch(slot)
        if stage.read_seconds:
            job = self._take_staged(index) or self._ask(index, self._next_buffer())
            job.slot = slot
            assert job.read is None, "the host is never later than a read that has no slot"
            slot.job = job
        else:
            self._catch_up(self._host)
            self._copy(stage, slot, self._host)

    def _copy(self, stage: Stage, slot: _Slot, enqueued: float) -> float:
        """Enqueues the copy; when it ends. The compute stream's use of the slot comes first."""
        begin = max(self._copies, slot.free, enqueued)
        slot.ready = self._copies = begin + stage.copy_seconds
        slot.copied = begin, slot.ready
        return slot.ready

    def _settle(self, slot: _Slot) -> None:
        """The forward thread waits on the host until the read is done and its copy enqueued."""
        while slot.job is not None:
            self._host = max(self._host, self._finish(self._jobs.popleft()))

    def _catch_up(self, until: float) -> None:
        """Lets readers enqueue the copies of reads that are done by now."""
        while self._jobs and self._read_end(self._jobs[0]) <= until:
            self._finish(self._jobs.popleft())

    def _read_end(self, job: _Job) -> float:
        begin = max(job.asked, self._disk, self._copied[job.buffer])
        return begin + job.stage.read_seconds

    def _finish(self, job: _Job) -> float:
        """The read has been done and its copy is enqueued, at the time returned."""
        end = self._disk = self._read_end(job)
        job.read = end - job.stage.read_seconds, end
        assert job.slot is not None, "reads end in order, so the unit that is waited for is last"
        job.slot.read = job.read
        if self._pipeline.on_host:
            job.slot.ready = end
        else:
            self._copied[job.buffer] = self._copy(job.stage, job.slot, end)
        if job.slot.job is job:
            job.slot.job = None
        return end

    def _find(self, index: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.occupant == index), None)

    def _evictable(self, keep: set[int], *, running: _Slot | None) -> _Slot | None:
        offered = [s for s in self._slots if s is not running and s.occupant not in keep]
        return min(offered, key=lambda slot: slot.last_used, default=None)

    def _touch(self, slot: _Slot) -> None:
        self._uses += 1
        slot.last_used = self._uses


def _upcoming(stages: Sequence[Stage]) -> list[tuple[int, ...]]:
    """For each position the streamed stages after it, nearest first, one turn of the cycle."""
    streamed = tuple(at for at, stage in enumerate(stages) if stage.streamed)
    passed = (bisect_right(streamed, index) for index in range(len(stages)))
    return [streamed[count:] + streamed[:count] for count in passed]
