"""The only place that wires rooms together: `swap_blocks`, `open_transformer`, their kin."""

from .checkpoint import open_transformer
from .experts import Swaps, open_experts, swap_experts
from .foresee import Outlook
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
    "Outlook",
    "Swap",
    "Swaps",
    "as_args",
    "find_file_units",
    "open_experts",
    "open_transformer",
    "plan_file_units",
    "plan_units",
    "stream_file_units",
    "stream_units",
    "swap_blocks",
    "swap_experts",
]
