"""Reader threads: every piece once, in order of jobs, errors kept, nothing hangs."""

import threading

import pytest

from blockswap.errors import ReadError, StateError
from blockswap.store.readers import Follower, Job, ReaderPool
from blockswap.stream.device import open_device
from blockswap.stream.pool.pool import Pool, PoolSizes

WAIT = 20.0


def test_every_piece_runs_once_and_finish_after_all() -> None:
    pool = ReaderPool(4)
    seen: list[int] = []
    job = Job([lambda n=n: seen.append(n) for n in range(50)], lambda: seen.append(-1))
    pool.submit(job)
    assert job.wait(WAIT)
    assert sorted(seen[:-1]) == list(range(50))
    assert seen[-1] == -1
    assert pool.close() == []


def test_a_job_without_pieces_still_finishes() -> None:
    pool = ReaderPool(2)
    done: list[bool] = []
    job = Job([], lambda: done.append(True))
    pool.submit(job)
    assert job.wait(WAIT)
    assert done == [True]
    pool.close()


def test_a_piece_of_a_later_job_may_wait_for_an_earlier_job() -> None:
    """As staging does: with as many waiting pieces as readers, nothing may lock up."""
    pool = ReaderPool(3)
    jobs: list[Job] = []
    for number in range(20):
        earlier = jobs[-1] if jobs else None

        def piece(earlier: Job | None = earlier) -> None:
            if earlier is not None:
                assert earlier.wait(WAIT)

        jobs.append(Job([piece] * 5, lambda: None))
        pool.submit(jobs[number])
    assert jobs[-1].wait(WAIT)
    assert [job.error for job in jobs] == [None] * 20
    pool.close()


@pytest.mark.parametrize("where", ["piece", "finish"])
def test_an_error_is_kept_and_finish_left_out(where: str) -> None:
    pool = ReaderPool(2)
    finished: list[bool] = []

    def failing() -> None:
        raise OSError(5, "Input/output error")

    def finish() -> None:
        finished.append(True)
        if where == "finish":
            failing()

    pieces = [failing] if where == "piece" else [lambda: None]
    job = Job(pieces * 3, finish)
    pool.submit(job)
    assert job.wait(WAIT)
    assert isinstance(job.error, OSError)
    assert finished == ([] if where == "piece" else [True])
    after = Job([lambda: None], lambda: None)
    pool.submit(after)
    assert after.wait(WAIT)
    assert after.error is None
    pool.close()


def test_close_lets_queued_work_finish_and_stops_every_thread() -> None:
    before = set(threading.enumerate())
    pool = ReaderPool(2)
    gate, seen = threading.Event(), []
    jobs = [Job([lambda: gate.wait(WAIT)], lambda n=n: seen.append(n)) for n in range(6)]
    for job in jobs:
        pool.submit(job)
    threading.Timer(0.05, gate.set).start()
    assert pool.close() == []
    assert sorted(seen) == list(range(6))
    assert all(job.done for job in jobs)
    assert not [t for t in set(threading.enumerate()) - before if "blockswap" in t.name]


def test_a_read_asked_for_after_close_fails_and_does_not_hang() -> None:
    pool = ReaderPool(1)
    pool.close()
    job = Job([lambda: None], lambda: None)
    pool.submit(job)
    assert job.wait(WAIT)
    assert job.error is not None


def test_closing_gives_a_stuck_disk_up_and_names_its_thread() -> None:
    pool = ReaderPool(1)
    gate = threading.Event()
    stuck, queued = Job([lambda: gate.wait(WAIT)], lambda: None), Job([lambda: None], lambda: None)
    pool.submit(stuck)
    pool.submit(queued)
    assert pool.close(timeout=0.1) == ["blockswap-reader-0"]
    assert queued.wait(WAIT)
    assert queued.error is not None
    gate.set()


def test_no_thread_to_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = ReaderPool(2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ReadError, match="can't start new thread"):
            pool.submit(Job([lambda: None], lambda: None))
    job = Job([lambda: None], lambda: None)
    pool.submit(job)
    assert job.wait(WAIT)
    assert pool.close() == []


def test_an_orphan_is_ended_and_a_queued_job_is_not() -> None:
    pool = ReaderPool(1)
    orphan = Job([lambda: None], lambda: None)
    pool.cancel_orphan(orphan)
    assert orphan.done
    assert orphan.error is not None
    gate = threading.Event()
    first, second = Job([lambda: gate.wait(WAIT)], lambda: None), Job([lambda: None], lambda: None)
    pool.submit(first)
    pool.submit(second)
    pool.cancel_orphan(first)
    pool.cancel_orphan(second)
    gate.set()
    assert first.wait(WAIT)
    assert second.wait(WAIT)
    assert first.error is second.error is None
    pool.close()


def test_a_follower_runs_when_its_leader_has_ended_and_not_before() -> None:
    pool = ReaderPool(1)
    gate, seen = threading.Event(), []
    leader = Job([lambda: gate.wait(WAIT)], lambda: seen.append("read"))
    follower = Follower(lambda: seen.append("copied"))
    pool.submit(leader)
    assert follower.follow(leader)
    assert not follower.done
    gate.set()
    assert follower.wait(WAIT)
    assert seen == ["read", "copied"]
    assert follower.error is None
    pool.close()


def test_a_follower_inherits_the_error_of_its_leader_and_does_nothing() -> None:
    pool = ReaderPool(1)
    gate, seen = threading.Event(), []

    def failing() -> None:
        gate.wait(WAIT)
        raise OSError(5, "Input/output error")

    leader, follower = Job([failing], lambda: None), Follower(lambda: seen.append("copied"))
    pool.submit(leader)
    assert follower.follow(leader)
    gate.set()
    assert follower.wait(WAIT)
    assert follower.error is leader.error is not None
    assert seen == []
    pool.close()


def test_who_follows_a_job_that_is_over_is_told_to_do_it_alone() -> None:
    pool = ReaderPool(1)
    leader, seen = Job([], lambda: None), []
    pool.submit(leader)
    assert leader.wait(WAIT)
    assert not Follower(lambda: seen.append("copied")).follow(leader)
    assert seen == []
    pool.close()


def test_a_follower_that_was_withdrawn_never_runs_and_is_over_at_once() -> None:
    pool = ReaderPool(1)
    gate, seen = threading.Event(), []
    leader, follower = (
        Job([lambda: gate.wait(WAIT)], lambda: None),
        Follower(lambda: seen.append(1)),
    )
    pool.submit(leader)
    assert follower.follow(leader)
    for _ in range(2):  # an interrupted call is repeated
        pool.cancel_orphan(follower)
        assert follower.done
    gate.set()
    assert leader.wait(WAIT)
    pool.close()
    assert seen == []
    assert leader.error is None


def test_a_follower_that_a_reader_has_begun_is_not_withdrawn() -> None:
    pool = ReaderPool(1)
    begun, gate, seen = threading.Event(), threading.Event(), []

    def copying() -> None:
        begun.set()
        gate.wait(WAIT)
        seen.append("copied")

    hold = threading.Event()
    leader, follower = Job([lambda: hold.wait(WAIT)], lambda: None), Follower(copying)
    pool.submit(leader)
    assert follower.follow(leader)
    hold.set()
    assert begun.wait(WAIT)
    follower.withdraw()
    assert not follower.done
    gate.set()
    assert follower.wait(WAIT)
    assert (seen, follower.error) == (["copied"], None)
    pool.close()


def test_a_follower_is_run_by_exactly_one_side_whoever_comes_first() -> None:
    pool = ReaderPool(2)
    for _ in range(300):
        seen: list[str] = []
        leader, follower = Job([], lambda: None), Follower(lambda seen=seen: seen.append("copied"))
        pool.submit(leader)
        if follower.follow(leader):
            assert follower.wait(WAIT)
        else:
            seen.append("alone")
        assert leader.wait(WAIT)
        assert len(seen) == 1
    pool.close()


@pytest.mark.parametrize(
    ("made", "kind", "words"),
    [
        (OSError(5, "Input/output error"), ReadError, "reading blocks.3 failed: .*Input/output"),
        (MemoryError(), ReadError, "reading blocks.3 failed: MemoryError"),
        (ReadError("said already"), ReadError, "said already"),
        (StateError("said already"), StateError, "said already"),
    ],
)
def test_an_error_is_raised_anew_each_time(
    made: Exception, kind: type[Exception], words: str
) -> None:
    """The one that is kept must not collect the frames of the forwards that it ended."""

    def failing() -> None:
        raise made

    pool = ReaderPool(1)
    job = Job([failing], lambda: None)
    pool.submit(job)
    assert job.wait(WAIT)
    pool.close()
    kept = made.__traceback__
    raised = []
    for _ in range(2):
        with pytest.raises(kind, match=words) as caught:
            job.raise_error("blocks.3")
        raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert all(error.__cause__ is made for error in raised)
    assert made.__traceback__ is kept


def test_a_job_that_did_not_fail_raises_nothing() -> None:
    pool = ReaderPool(1)
    job = Job([lambda: None], lambda: None)
    pool.submit(job)
    assert job.wait(WAIT)
    job.raise_error("blocks.3")
    pool.close()


def test_closing_twice_waits_once_and_names_the_stuck_reader_both_times() -> None:
    pool = ReaderPool(1)
    gate = threading.Event()
    pool.submit(Job([lambda: gate.wait(WAIT)], lambda: None))
    assert pool.close(timeout=0.05) == ["blockswap-reader-0"]
    assert pool.close() == ["blockswap-reader-0"]
    gate.set()


@pytest.mark.parametrize("readers", [1, 3])
def test_a_pool_has_the_readers_it_is_told(readers: int) -> None:
    pool = Pool(open_device("cpu"), PoolSizes(slots=1, slot_bytes=64, readers=readers))
    ids: set[int] = set()
    all_here = threading.Barrier(readers)

    def piece() -> None:
        all_here.wait(WAIT)  # passes only when so many threads are in it at once
        ids.add(threading.get_ident())

    job = Job([piece] * readers, lambda: None)
    pool.readers.submit(job)
    assert job.wait(WAIT)
    assert job.error is None
    assert len(ids) == readers
    assert pool.readers.close() == []
