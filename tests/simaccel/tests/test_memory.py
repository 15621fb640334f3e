"""Allocation, capacity, poison, pinned memory, and what the counters say about them."""

import gc

import pytest
import torch

import simaccel as sim

pytestmark = pytest.mark.usefixtures("mode")


@pytest.fixture
def held_before(mode):
    """Device bytes that earlier tests of this process still hold; the capacity is 1 MiB more."""
    gc.collect()
    held = sim.counters().device_bytes
    sim.configure(mode=mode, capacity=held + (1 << 20))
    return held


def empty(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device="sim")


def test_bytes_are_rounded_to_512_and_peak_is_kept():
    before = torch.accelerator.memory_allocated()
    torch.accelerator.reset_peak_memory_stats()
    first, second = empty(1), empty(513)
    assert torch.accelerator.memory_allocated() - before == 512 + 1024
    assert first.data_ptr() % 512 == 0
    del first, second
    assert torch.accelerator.memory_allocated() == before
    assert torch.accelerator.max_memory_allocated() - before == 512 + 1024
    assert sim.counters().device_bytes_peak == torch.accelerator.max_memory_allocated()


def test_capacity(held_before):
    held = empty(600 << 10)
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 600.00 KiB"):
        empty(600 << 10)
    free, total = torch.accelerator.get_memory_info()
    assert (free, total) == ((1 << 20) - (600 << 10), held_before + (1 << 20))
    del held
    empty(600 << 10)


def test_capacity_waits_for_memory_that_another_stream_still_holds(held_before):
    held, other = empty(600 << 10), torch.Stream("sim")
    other.wait_stream(torch.accelerator.current_stream())
    with other:
        held.fill_(1)
    held.record_stream(other)
    del held
    empty(600 << 10)


def test_new_memory_is_nan():
    assert torch.empty(100, device="sim").isnan().all()
    assert torch.empty(100, dtype=torch.bfloat16, device="sim").isnan().all()
    assert torch.empty(100, pin_memory=True).isnan().all()


def test_freed_memory_is_poisoned_and_handed_out_again():
    first = torch.ones(1000, device="sim")
    address = first.data_ptr()
    total = first.sum()  # enqueued before the free, so it still sees ones
    del first
    second = torch.empty(1000, device="sim")
    assert second.data_ptr() == address
    assert second.isnan().all()
    assert total.item() == 1000


def test_other_stream_does_not_get_the_freed_block():
    address = torch.ones(1000, device="sim").data_ptr()
    with torch.Stream("sim"):
        assert torch.empty(1000, device="sim").data_ptr() != address


def test_empty_cache_gives_memory_back():
    empty(1 << 20)
    torch.accelerator.synchronize()
    assert torch.accelerator.memory_reserved() >= 1 << 20
    torch.accelerator.empty_cache()
    assert torch.accelerator.memory_reserved() == torch.accelerator.memory_allocated()


def test_pinned_memory_is_counted_as_asked_and_as_locked():
    before = sim.counters()
    host = torch.empty(600 << 10, dtype=torch.uint8, pin_memory=True)
    assert host.is_pinned()
    assert host[1000:2000].is_pinned()
    assert not torch.empty(10).is_pinned()
    after = sim.counters()
    assert after.pinned_allocations - before.pinned_allocations == 1
    assert after.pinned_bytes - before.pinned_bytes == 600 << 10
    assert after.pinned_locked_bytes - before.pinned_locked_bytes == 1 << 20
    assert sim.locked_bytes(600 << 10) == 1 << 20
    del host
    assert sim.counters().pinned_bytes == before.pinned_bytes
    assert sim.counters().pinned_bytes_peak == after.pinned_bytes


def test_pin_memory_of_an_ordinary_tensor():
    host = torch.arange(10)
    assert torch.equal(host.pin_memory(), host)
    assert host.pin_memory().is_pinned()


def test_pinning_beyond_the_limit_fails(mode):
    sim.configure(mode=mode, pinned_capacity=1 << 20)
    held = torch.empty(1 << 19, dtype=torch.uint8, pin_memory=True)
    with pytest.raises(RuntimeError, match="cannot pin"):
        torch.empty((1 << 19) + 1, dtype=torch.uint8, pin_memory=True)
    assert held.is_pinned()


def test_pinned_source_may_be_dropped_while_it_is_copied():
    slot = empty(1 << 20)
    slot.copy_(torch.full((1 << 20,), 7, dtype=torch.uint8).pin_memory(), non_blocking=True)
    assert slot.unique().tolist() == [7]


def test_storage_resize_keeps_the_bytes():
    tensor = torch.arange(100, dtype=torch.uint8, device="sim")
    tensor.untyped_storage().resize_(1000)
    assert torch.equal(tensor.cpu(), torch.arange(100, dtype=torch.uint8))
    tensor.untyped_storage().resize_(0)
    assert tensor.untyped_storage().nbytes() == 0
