"""The only room that wires others together: `swap_blocks`, `open_transformer` and their like."""

from .entry.arguments import as_args
from .entry.checkpoint_file import open_transformer
from .entry.experts import Swaps, open_experts, plan_loaded, swap_experts
from .entry.host_application import (
    FileUnits,
    Mapped,
    find_file_units,
    plan_file_units,
    plan_units,
    stream_file_units,
    stream_units,
)
from .entry.loaded_model import swap_blocks
from .entry.on_ranks import report_of_ranks
from .entry.text_encoder import open_text_encoder
from .opening.engine_start import Hosted
from .plan_inputs.outlook import Outlook
from .running.handle import Swap
from .running.out_of_memory import Attempt

__all__ = [
    "Attempt",
    "FileUnits",
    "Hosted",
    "Mapped",
    "Outlook",
    "Swap",
    "Swaps",
    "as_args",
    "find_file_units",
    "open_experts",
    "open_text_encoder",
    "open_transformer",
    "plan_file_units",
    "plan_loaded",
    "plan_units",
    "report_of_ranks",
    "stream_file_units",
    "stream_units",
    "swap_blocks",
    "swap_experts",
]
