"""A peak is seen by whoever looks for it, although swaps reset the device's at each forward."""

import torch

from blockswap.stream.device import open_device
from blockswap.stream.peaks import PeakWatch


def test_a_peak_outlives_its_resets(sim_device: torch.device) -> None:
    where = open_device(sim_device)
    long = PeakWatch(where)
    before = where.allocated_bytes()
    made = torch.empty(2**20, dtype=torch.uint8, device=sim_device)
    del made
    short = PeakWatch(where)
    where.reset_peak()
    smaller = torch.empty(2**18, dtype=torch.uint8, device=sim_device)
    del smaller
    where.reset_peak()
    assert long.peak_bytes() == before + 2**20
    assert short.peak_bytes() == before + 2**18
    assert where.peak_bytes() == before


def test_the_host_tells_none() -> None:
    assert PeakWatch(open_device(torch.device("cpu"))).peak_bytes() is None
