"""Models of the wrapper pack (WANVIDEOMODEL): block swap there is that pack's own.

Its sampler reads a dictionary from the model's `transformer_options`; that is what we hand over.
"""

import logging
from typing import Any

from ..selection import BlockSwapArgs


def is_wrappers(model: Any) -> bool:
    """Whether a model is the wrapper pack's; it keeps a `pipeline` where ComfyUI has none."""
    inner = getattr(model, "model", None)
    return hasattr(model, "model_options") and (inner is None or hasattr(inner, "pipeline"))


def hand_over(model: Any, args: BlockSwapArgs) -> tuple[Any, str]:
    """A clone that carries `args` in the wrapper pack's own contract, and a sentence about it."""
    clone = model.clone()
    asked = args.to_mapping()
    clone.model_options.setdefault("transformer_options", {})["block_swap_args"] = asked
    count = asked["blocks_to_swap"]
    said = (
        f"this is a model of WanVideoWrapper, which swaps blocks itself: {count} blocks were asked "
        "of it, in its own arguments"
    )
    if args.block_list is not None or args.vram_budget is not None or args.ram_budget is not None:
        said += "; it knows counts only, so which blocks and budgets are left out"
    logging.info("blockswap: %s", said)
    return clone, said
