"""The model that every schedule runs: blocks that hold weights and compute for an exact time."""

import torch

import simaccel as sim
from benchmarks.schedule.what import (
    BLOCK_TENSORS,
    RATES,
    TENSOR_BYTES,
    Case,
    Rates,
    transfer_seconds,
)


class ClockedBlock(torch.nn.Module):
    """A block of `BLOCK_TENSORS` tensors whose forward takes `seconds` of device time."""

    def __init__(self, tensor_bytes: int) -> None:
        super().__init__()
        self.seconds = 0.0
        for number in range(BLOCK_TENSORS):
            weight = torch.zeros(tensor_bytes, dtype=torch.uint8)
            self.register_parameter(
                f"weight{number}", torch.nn.Parameter(weight, requires_grad=False)
            )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Reads every weight, so that a missing wait is a race; `hidden` passes through."""
        reads = [weight for weight in self._parameters.values() if weight is not None]
        sim.compute(self.seconds, reads=reads, name="block")
        return hidden


class ClockedModel(torch.nn.Module):
    """A transformer's skeleton: a list called `blocks`, and one small weight beside it."""

    def __init__(self, blocks: int, tensor_bytes: int = TENSOR_BYTES) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(ClockedBlock(tensor_bytes) for _ in range(blocks))
        self.head = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def compute_for(self, seconds: float) -> None:
        """From now on every block computes for `seconds`."""
        for block in self.blocks:
            assert isinstance(block, ClockedBlock)
            block.seconds = seconds


def timed_model(case: Case, rates: Rates = RATES) -> ClockedModel:
    """A model in host memory whose blocks compute as `case` says, streamed over the link."""
    model = ClockedModel(case.blocks).eval()
    model.compute_for(case.compute_seconds(transfer_seconds(case, rates)))
    return model
