"""Random programs: the detector reports an op exactly if a brute-force search finds a race."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch

import simaccel as sim

STREAMS, EVENTS, ELEMENTS, STEPS = 3, 3, 8, 60


@dataclass
class Model:
    """What happened before what, kept as plain sets of op numbers."""

    streams: list[set[int]] = field(default_factory=lambda: [set() for _ in range(STREAMS)])
    events: list[set[int] | None] = field(default_factory=lambda: [None] * EVENTS)
    host: set[int] = field(default_factory=set)
    accesses: list[tuple[int, int, bool]] = field(default_factory=list)  # begin, end, write

    def enqueue(self, stream: int, begin: int, end: int, write: bool) -> bool:
        """True if the new op races with an earlier one."""
        known = self.streams[stream] | self.host
        races = any(
            number not in known and begin < other_end and other_begin < end and (write or written)
            for number, (other_begin, other_end, written) in enumerate(self.accesses)
        )
        self.accesses.append((begin, end, write))
        self.streams[stream] = known | {len(self.accesses) - 1}
        return races

    def record(self, event: int, stream: int) -> None:
        self.streams[stream] |= self.host
        self.events[event] = set(self.streams[stream])

    def wait(self, event: int, stream: int) -> None:
        self.streams[stream] |= self.events[event] or set()

    def synchronize(self, known: set[int] | None) -> None:
        self.host |= known or set()


class Program:
    """Runs one random program on the model and on the device, step by step."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.model = Model()
        self.streams = [torch.Stream("sim") for _ in range(STREAMS)]
        self.events = [torch.Event("sim") for _ in range(EVENTS)]
        self.memory = torch.empty(ELEMENTS, dtype=torch.uint8, device="sim")
        torch.accelerator.synchronize()
        self.found = 0

    def step(self) -> None:
        action = self.random.choice(["op"] * 5 + ["record", "wait", "wait", "event", "stream"])
        stream, event = self.random.randrange(STREAMS), self.random.randrange(EVENTS)
        if action == "op":
            self.op(stream)
        elif action == "record":
            self.model.record(event, stream)
            self.events[event].record(self.streams[stream])
        elif action == "stream":
            self.model.synchronize(self.model.streams[stream])
            self.streams[stream].synchronize()
        elif self.model.events[event] is None:
            return
        elif action == "wait":
            self.model.wait(event, stream)
            self.streams[stream].wait_event(self.events[event])
        else:
            self.model.synchronize(self.model.events[event])
            self.events[event].synchronize()

    def op(self, stream: int) -> None:
        begin = self.random.randrange(ELEMENTS)
        end = self.random.randrange(begin, ELEMENTS) + 1
        write = self.random.random() < 0.5
        expected = self.model.enqueue(stream, begin, end, write)
        before = len(sim.races())
        part = [self.memory[begin:end]]
        with self.streams[stream]:
            sim.compute(0.0, reads=[] if write else part, writes=part if write else [])
        assert (len(sim.races()) > before) == expected
        self.found += expected


def test_detector_agrees_with_brute_force(mode):
    found = 0
    for seed in range(150):
        sim.configure(mode=mode, races="record")
        sim.reset()
        program = Program(seed)
        for _ in range(STEPS):
            program.step()
        found += program.found
    assert found > 1000


def test_virtual_time_is_the_same_in_both_modes():
    def end(seed: int, mode: str) -> float:
        sim.configure(mode=mode, races="off", launch_seconds=1e-6)
        sim.reset()
        rng = random.Random(seed)
        streams = [torch.Stream("sim") for _ in range(STREAMS)]
        host = torch.zeros(1000, dtype=torch.uint8, pin_memory=True)
        slot = torch.zeros(1000, dtype=torch.uint8, device="sim")
        for _ in range(40):
            with rng.choice(streams) as stream:
                slot.copy_(host, non_blocking=True)
                sim.compute(rng.random() * 1e-4)
            rng.choice(streams).wait_stream(stream)
        torch.accelerator.synchronize()
        return sim.clock.now()

    for seed in range(10):
        assert end(seed, "eager") == pytest.approx(end(seed, "lazy"), rel=1e-12)
