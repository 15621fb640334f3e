"""The only place that wires rooms together: `swap_blocks`, `open_transformer`, and their hosted kin."""

from .checkpoint import open_transformer
from .handle import Swap
from .hosted import (
    FileUnits,
    find_file_units,
    plan_file_units,
    plan_units,
    stream_file_units,
    stream_units,
)
from .module import as_args, swap_blocks

__all__ = [
    "FileUnits",
    "Swap",
    "as_args",
    "find_file_units",
    "open_transformer",
    "plan_file_units",
    "plan_units",
    "stream_file_units",
    "stream_units",
    "swap_blocks",
]
