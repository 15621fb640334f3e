"""Virtual time follows Python's own ways of handing work from thread to thread."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import simaccel as sim

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(autouse=True)
def followed(device):
    with sim.follow_handovers():
        yield


def in_thread(work) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_start_and_join():
    sim.clock.advance_host(1.0)
    thread = in_thread(lambda: sim.clock.advance_host(2.0))
    assert sim.clock.now() == 1.0
    thread.join()
    assert sim.clock.now() == 3.0


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_queues(kind):
    requests, results = getattr(queue, kind)(), getattr(queue, kind)()

    def work():
        while (seconds := requests.get()) is not None:
            sim.clock.advance_host(seconds)
            results.put(sim.clock.now())

    thread = in_thread(work)
    sim.clock.advance_host(1.0)
    requests.put(2.0)
    assert results.get() == 3.0
    assert sim.clock.now() == 3.0
    sim.clock.advance_host(4.0)
    requests.put(1.0)
    assert results.get() == 8.0
    requests.put(None)
    thread.join()


def test_event_that_was_set_before_it_was_waited_for():
    event = threading.Event()

    def work():
        sim.clock.advance_host(5.0)
        event.set()

    in_thread(work)
    assert event.wait(10)
    assert sim.clock.now() == 5.0


def test_futures():
    def work(seconds: float) -> float:
        sim.clock.advance_host(seconds)
        return sim.clock.now()

    sim.clock.advance_host(1.0)
    with ThreadPoolExecutor(max_workers=1) as executor:
        assert executor.submit(work, 2.0).result() == 3.0
    assert sim.clock.now() == 3.0
