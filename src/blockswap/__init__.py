"""Block swap for Wan video transformers: blocks stream to the device, every copy under compute.

from blockswap import BlockSwapArgs, open_transformer, swap_blocks

with swap_blocks(transformer, BlockSwapArgs(vram_budget="8GiB"), device="cuda") as swap:
    video = pipe(prompt)
    print(swap.report())
"""

from typing import TYPE_CHECKING, Any

from .errors import BlockSwapError
from .lora.request import Lora
from .plan import SwapPlan
from .plan.inputs.workload import Workload
from .selection import BlockSwapArgs

if TYPE_CHECKING:
    from .swap import (
        Outlook,
        Swap,
        Swaps,
        open_experts,
        open_text_encoder,
        open_transformer,
        report_of_ranks,
        swap_blocks,
        swap_experts,
    )
    from .turns import BlockSwapStrategy, swap_pipeline

__version__ = "0.1.0"
__all__ = [
    "BlockSwapArgs",
    "BlockSwapError",
    "BlockSwapStrategy",
    "Lora",
    "Outlook",
    "Swap",
    "SwapPlan",
    "Swaps",
    "Workload",
    "open_experts",
    "open_text_encoder",
    "open_transformer",
    "report_of_ranks",
    "swap_blocks",
    "swap_experts",
    "swap_pipeline",
]
_TURNS = ("BlockSwapStrategy", "swap_pipeline")


def __getattr__(name: str) -> Any:
    """Loads the torch side on first use, so that planning and the command line start quickly."""
    if name in _TURNS:
        from . import turns

        return getattr(turns, name)
    if name in __all__:  # all that is not imported above
        from . import swap

        return getattr(swap, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
