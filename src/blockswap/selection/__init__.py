"""Selection: from what a person asks for to the blocks that may be streamed. Plain Python."""

from blockswap.selection.args import BlockSwapArgs
from blockswap.selection.grammar import BlockList, parse_block_list
from blockswap.selection.select import Selection, select
from blockswap.selection.spread import spread

__all__ = [
    "BlockList",
    "BlockSwapArgs",
    "Selection",
    "parse_block_list",
    "select",
    "spread",
]
