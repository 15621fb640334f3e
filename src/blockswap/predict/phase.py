"""What one phase of a generation needs on the device: weights, activations, output, FLOPs."""

from dataclasses import dataclass

# As a plan has them where nothing is asked: two blocks are brought ahead of the one that runs.
SLOTS = 3


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """A model that is on the device for one phase: its weights, and what its work adds to them.

    `activation_bytes` is the most that is alive beside the weights, inputs and outputs included.
    `streamed_bytes` is what of the weights is on the device where its blocks are streamed; 0: they
    cannot be.
    """

    weight_bytes: int
    activation_bytes: int
    output_bytes: int
    flops: int = 0
    streamed_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes
