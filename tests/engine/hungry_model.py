"""A model that draws random numbers and takes as much memory for activations as it is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from blockswap import BlockSwapArgs, Swap, open_transformer, swap_blocks

DIM = 64
BLOCK_BYTES = DIM * DIM * 4 + DIM * 4  # as a slab: a multiple of 256


class HungryBlock(nn.Module):
    """A linear layer with random numbers of device and host; takes `scratch_bytes` as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)
        self.scratch_bytes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.linear(x))
        y = y * (torch.rand_like(y) > 0.25)
        y = y + torch.rand(DIM, device="cpu").to(x.device)
        scratch = torch.empty(self.scratch_bytes, dtype=torch.uint8, device=x.device)
        return x + y + scratch[:0].sum()


class HungryModel(nn.Module):
    """Blocks, then a head that takes `head_bytes`, returning what it holds in a tuple's place."""

    def __init__(self, blocks: int = 12) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(HungryBlock() for _ in range(blocks))
        self.head = nn.Linear(DIM, 4)
        self.head_bytes = 0
        self.calls = 0

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        """`x` `[tokens, DIM]` -> `[tokens, 4]`."""
        self.calls += 1
        kept = []
        for block in self.blocks:
            x = block(x * scale)
            kept.append(x)  # a failed attempt holds all of these
        scratch = torch.empty(self.head_bytes, dtype=torch.uint8, device=x.device)
        return self.head(x + kept[0]) + scratch[:0].sum()

    def scratch(self, *, blocks: int | dict[int, int] = 0, head: int = 0) -> None:
        """Sets the bytes taken in every block, or in those named, and in the head."""
        for number, block in enumerate(self.blocks):
            wanted = blocks.get(number, 0) if isinstance(blocks, dict) else blocks
            block.scratch_bytes = wanted
        self.head_bytes = head


def build(blocks: int = 12) -> HungryModel:
    """Equal weights every time; the random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return HungryModel(blocks)


def given(device: torch.device, tokens: int = 3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, DIM, generator=draw).to(device)


def expected(
    device: torch.device, seeds: list[int], *, tokens: int = 3, blocks: int = 12
) -> list[torch.Tensor]:
    """What the unswapped model returns after each seed."""
    model = build(blocks).to(device)
    outs = []
    with torch.no_grad():
        for seed in seeds:
            torch.manual_seed(seed)
            outs.append(model(given(device, tokens)).cpu())
    return outs


@contextmanager
def swapped(
    store: str, device: torch.device, folder: Path, args: BlockSwapArgs, *, blocks: int = 12
) -> Iterator[tuple[HungryModel, Swap]]:
    """The model with its weights in RAM, or opened from a file."""
    if store == "ram":
        model = build(blocks)
        swap = swap_blocks(model, args, device=device)
    else:
        path = folder / f"hungry-{blocks}.safetensors"
        if not path.exists():
            save_file(build(blocks).state_dict(), path)
        with torch.device("meta"):
            model = HungryModel(blocks)
        open_transformer(path, args, device=device, skeleton=model)
        swap = model.blockswap  # type: ignore[assignment]
    try:
        yield model, swap
    finally:
        swap.close()


def seeded(model: nn.Module, x: torch.Tensor, seed: int) -> torch.Tensor:
    """One forward after seeding the generators of host and device, brought to the CPU."""
    torch.manual_seed(seed)
    out: torch.Tensor = model(x)
    return out.cpu()
