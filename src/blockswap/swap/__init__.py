"""The only place that wires rooms together: `swap_blocks` and `open_transformer`."""

from .checkpoint import open_transformer
from .foresee import Outlook
from .handle import Swap
from .module import swap_blocks

__all__ = ["Outlook", "Swap", "open_transformer", "swap_blocks"]
