"""Selection: from what a person asks for to the blocks that may be streamed. Plain Python."""

from .args import BlockSwapArgs
from .grammar import BlockList, parse_block_list
from .select import Selection, select
from .spread import spread

__all__ = [
    "BlockList",
    "BlockSwapArgs",
    "Selection",
    "parse_block_list",
    "select",
    "spread",
]
