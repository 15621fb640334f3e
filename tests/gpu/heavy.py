"""A model whose blocks are large and whose compute can be set, and how it is timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes: `blocks` blocks of `matrices` square matrices of `width`, in fp16."""

    blocks: int
    matrices: int
    width: int
    tokens: int

    @classmethod
    def of(cls, device: torch.device) -> "Scale":
        """Blocks of 128 MiB, 1.5 GiB in all; half as many where that much memory is not free."""
        free, _ = torch.accelerator.get_memory_info(device)
        blocks = 12 if free > 4 << 30 else 6
        return cls(blocks=blocks, matrices=16, width=2048, tokens=4096)

    @classmethod
    def small(cls) -> "Scale":
        return cls(blocks=6, matrices=2, width=256, tokens=64)

    @property
    def block_bytes(self) -> int:
        return self.matrices * self.width * self.width * 2


class HeavyBlock(torch.nn.Module):
    """`repeats` rounds through all matrices."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.repeats = 1
        spread = scale.width**-0.5
        for number in range(scale.matrices):
            matrix = (torch.randn(scale.width, scale.width) * spread).half()
            self.register_parameter(
                f"matrix{number}", torch.nn.Parameter(matrix, requires_grad=False)
            )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`hidden` `[tokens, width]`."""
        for _ in range(self.repeats):
            for matrix in self._parameters.values():
                assert matrix is not None
                hidden = hidden @ matrix
        return hidden


class HeavyModel(torch.nn.Module):
    """Blocks one after the other, and one weight that is no block."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.blocks = torch.nn.ModuleList(HeavyBlock(scale) for _ in range(scale.blocks))
        self.head = torch.nn.Parameter(torch.ones(scale.width).half(), requires_grad=False)
        self.eval()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return hidden * self.head

    def repeat(self, rounds: int) -> None:
        """From now on every block computes that often."""
        for block in self.blocks:
            assert isinstance(block, HeavyBlock)
            block.repeats = rounds


def hidden_for(scale: Scale, device: torch.device, tokens: int | None = None) -> torch.Tensor:
    """An input `[tokens, width]` on the device, the same every time."""
    made = torch.Generator().manual_seed(11)
    return torch.randn(tokens or scale.tokens, scale.width, generator=made).half().to(device)


def seconds_of(run: Callable[[], object], times: int, *, warm: int = 2) -> float:
    """Wall seconds of one run: several without a pause, the device waited for at the end."""
    for _ in range(warm):
        run()
    torch.accelerator.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        run()
    torch.accelerator.synchronize()
    return (time.perf_counter() - began) / times


def plain_copy_bytes_per_second(nbytes: int, device: torch.device) -> float:
    """What one pinned copy of `nbytes` after the other reaches."""
    source = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(nbytes, dtype=torch.uint8, device=device)
    return nbytes / seconds_of(lambda: target.copy_(source, non_blocking=True), 20)
