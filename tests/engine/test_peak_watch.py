"""A peak is seen by whoever looks for it, although swaps reset the device's at each forward."""

import torch

from blockswap import swap_blocks
from blockswap.stream.device import open_device
from blockswap.stream.peaks import PeakWatch


class _Blocks(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


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


def test_a_report_keeps_its_peak_when_another_swap_opens(sim_device: torch.device) -> None:
    """Opening resets the device's peak, and so does each corrected forward of the other."""
    one, other = _Blocks(), _Blocks()
    before = open_device(sim_device).allocated_bytes() or 0  # what other tests left there
    with swap_blocks(one, {"blocks_to_swap": 2}, device=sim_device) as swap:
        made = torch.empty(2**20, dtype=torch.uint8, device=sim_device)
        del made
        with swap_blocks(other, {"blocks_to_swap": 2}, device=sim_device) as second:
            with torch.no_grad():
                other(torch.ones(1, 8, device=sim_device))
            assert (second.measured().device_peak_bytes or 0) < before + 2**20
        assert (swap.measured().device_peak_bytes or 0) >= before + 2**20


def test_the_host_tells_none() -> None:
    assert PeakWatch(open_device(torch.device("cpu"))).peak_bytes() is None
