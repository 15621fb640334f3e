"""Memory kept free beside a predicted peak: 5 % of activations and 256 MiB, none on the CPU."""

from dataclasses import dataclass

from ...units import MIB


@dataclass(frozen=True, slots=True)
class Margin:
    """Bytes to keep free: a share of the activations, and a fixed sum."""

    share: float
    fixed_bytes: int

    def of(self, activation_bytes: int) -> int:
        """The margin of a forward with these activations, in bytes."""
        return round(self.share * activation_bytes) + self.fixed_bytes


# A prediction counts tensors. What a real accelerator takes beside them, and none of it is seen by
# following a forward: the caching allocator's rounding (a request over 1 MiB gets a segment in
# steps of 2 MiB, and one over 10 MiB leaves an unused rest of up to 20 MiB unsplit) and
# fragmentation, which grow with the activations: the share; workspaces of cuBLAS (8 to 32 MiB a
# stream), cuDNN (the patch embedding), modules of kernels that are loaded on first use: the sum.
# A convention, not a measurement: the first step's real peak is to replace it.
MARGIN = Margin(share=0.05, fixed_bytes=256 * MIB)

# The CPU and the simulated accelerator allocate what is asked for.
NO_MARGIN = Margin(share=0.0, fixed_bytes=0)
