"""The only place that wires rooms together: `swap_blocks`, `open_transformer`, `stream_units`."""

from .checkpoint import open_transformer
from .handle import Swap
from .module import plan_units, stream_units, swap_blocks

__all__ = ["Swap", "open_transformer", "plan_units", "stream_units", "swap_blocks"]
