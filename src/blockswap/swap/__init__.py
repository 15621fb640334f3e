"""The only place that wires rooms together: `swap_blocks` and `open_transformer`."""

from blockswap.swap.checkpoint import open_transformer
from blockswap.swap.handle import Swap
from blockswap.swap.module import swap_blocks

__all__ = ["Swap", "open_transformer", "swap_blocks"]
