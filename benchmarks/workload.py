"""The model that every schedule runs: blocks that hold weights and compute for an exact time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.simulator import RATES, Rates, sim

BLOCK_TENSORS = 4
TENSOR_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Case:
    """One point of the grid.

    `ratio` is transfer / compute of a whole forward: transfer for all streamed blocks over the
    slowest hop of their way, compute for all blocks.
    """

    streamed: int
    ratio: float
    blocks: int = 40

    @property
    def residents(self) -> int:
        return self.blocks - self.streamed

    def compute_seconds(self, transfer_seconds: float) -> float:
        """Seconds of one block that give the ratio for `transfer_seconds` of a forward."""
        return transfer_seconds / self.ratio / self.blocks

    def bound_seconds(self, transfer_seconds: float) -> float:
        """No schedule is faster: a forward computes everything and moves what is streamed."""
        return max(transfer_seconds, transfer_seconds / self.ratio)


class ClockedBlock(torch.nn.Module):
    """A block of `BLOCK_TENSORS` tensors whose forward takes `seconds` of device time."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        for number in range(BLOCK_TENSORS):
            weight = torch.zeros(TENSOR_BYTES, dtype=torch.uint8)
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

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(ClockedBlock() for _ in range(blocks))
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


def block_bytes() -> int:
    """Bytes of one block's weights."""
    return BLOCK_TENSORS * TENSOR_BYTES


def transfer_seconds(case: Case, rates: Rates = RATES) -> float:
    """Seconds for which the streamed blocks of a forward occupy the link."""
    return rates.link_seconds(case.streamed * block_bytes())


def timed_model(case: Case, rates: Rates = RATES) -> ClockedModel:
    """A model in host memory whose blocks compute as `case` says, streamed over the link."""
    model = ClockedModel(case.blocks).eval()
    model.compute_for(case.compute_seconds(transfer_seconds(case, rates)))
    return model


def tail(case: Case) -> Sequence[int]:
    """The streamed blocks when residents are contiguous, at the front of the model."""
    return range(case.residents, case.blocks)
