"""The stand-in's transformer: small, with the shape of the real one where block swap touches it.

`moved` records what its own block swap has moved, as (name, where to).
"""

from typing import Any

import torch
from torch import nn

from ...devices import device, offload_device

DIM, BLOCKS, VACE_LAYERS = 16, 6, (0, 2, 4)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(1, DIM))
        self.norm = nn.LayerNorm(DIM)
        self.q = nn.Linear(DIM, DIM)
        self.ffn = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))
        self.kv_cache: Any = None

    def forward(self, x: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        x = x + self.q(self.norm(x) + self.modulation.to(x.dtype))
        return x + self.ffn(x), None


class VaceBlock(Block):
    def __init__(self, block_id: int) -> None:
        super().__init__()
        self.register_buffer("block_id", torch.tensor(block_id))
        if block_id == 0:
            self.before_proj = nn.Linear(DIM, DIM)
        self.after_proj = nn.Linear(DIM, DIM)


class WanModel(nn.Module):
    def __init__(self, *, vace: bool = False) -> None:
        super().__init__()
        self.main_device, self.offload_device = device, offload_device
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.vace_layers = VACE_LAYERS if vace else None
        if vace:
            self.vace_blocks = nn.ModuleList(VaceBlock(n) for n in VACE_LAYERS)
        self.text_embedding = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, DIM))
        self.patch_embedding = nn.Linear(DIM, DIM)
        self.head = nn.Linear(DIM, DIM)
        self.patched_linear = False
        self.blocks_to_swap = self.vace_blocks_to_swap = -1
        self.prefetch_blocks = 0
        self.use_non_blocking = self.block_swap_debug = False
        self.offload_txt_emb = self.offload_img_emb = False
        self.moved: list[tuple[str, str]] = []
        self.fails_at: int | None = None  # the block in front of which a run is interrupted

    def block_swap(
        self, blocks_to_swap, offload_txt_emb=False, offload_img_emb=False, vace_blocks_to_swap=None
    ) -> None:
        count = max(0, min(blocks_to_swap, len(self.blocks)))
        self.blocks_to_swap = count
        for number, block in enumerate(self.blocks):
            stays = number < len(self.blocks) - count
            block.to(self.main_device if stays else self.offload_device)
        if self.vace_layers is not None:
            self.vace_blocks_to_swap = max(1, min(vace_blocks_to_swap or 0, len(self.vace_blocks)))
            for number, block in enumerate(self.vace_blocks):
                stays = number < len(self.vace_blocks) - self.vace_blocks_to_swap
                block.to(self.main_device if stays else self.offload_device)

    def _move(self, name: str, block: nn.Module, where: torch.device) -> None:
        self.moved.append((name, str(where)))
        block.to(where)

    def forward_vace(self, x: torch.Tensor, context: torch.Tensor) -> list[torch.Tensor]:
        hints, current = [], context
        first = len(self.vace_blocks) - max(self.vace_blocks_to_swap, 0)
        for number, block in enumerate(self.vace_blocks):
            if number >= first:
                self._move(f"vace_blocks.{number}", block, self.main_device)
            if number == 0:
                current = block.before_proj(current) + x
            current = block.forward(current)[0]  # by name, as the real one does it
            hints.append(block.after_proj(current))
            if number >= first:
                self._move(f"vace_blocks.{number}", block, self.offload_device)
        return hints

    def forward(self, x, text, vace_context=None) -> torch.Tensor:
        x = self.patch_embedding(x) + self.text_embedding(text)
        hints = [] if vace_context is None else self.forward_vace(x, vace_context)
        first = len(self.blocks) - max(self.blocks_to_swap, 0)
        for number, block in enumerate(self.blocks):
            if number == self.fails_at:
                raise InterruptedError("interrupted")
            if number >= first:
                self._move(f"blocks.{number}", block, self.main_device)
            x, _ = block(x)
            if number >= first:
                self._move(f"blocks.{number}", block, self.offload_device)
            if hints and number in self.vace_layers:
                x = x + hints[self.vace_layers.index(number)]
        return self.head(x)
