"""The only place that wires rooms together: `swap_blocks` and `open_transformer`."""

from .checkpoint import open_transformer
from .handle import Swap
from .module import swap_blocks

__all__ = ["Swap", "open_transformer", "swap_blocks"]
