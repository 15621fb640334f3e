"""Models of the wrapper pack (WANVIDEOMODEL): whether we stream their blocks, or the pack itself.

Where the pack is as `names` knows it, a clone carries counts that ask its loading to leave
all blocks in host memory, and the runs of that clone are ours (`doors`). Any other version
keeps its own block swap, with an exact count: its sampler reads a dictionary from the model's
`transformer_options`, knows a count and swaps the last blocks. For a model whose linears are its
own (fp8 with scales, GGUF, LoRAs that are not merged) it swaps as many as the count says, for any
other one fewer: there the count is handed over one higher. What it has no word for is refused.
"""

import logging
from typing import Any

from ...errors import ArgsError, ModelError
from ...selection import BlockSwapArgs
from ...selection.grammar import MOST_INDEX
from ..runs.wish import Wish
from .beforehand import MANAGED, layout_of, said_of
from .doors import Count, take_over
from .names import COUNTS, SETTINGS, bare_transformer, missing, pack_of, pipeline_of
from .takeover import Takeover, takeover_of

_SAID = "blockswap_said"
_ARGS = "block_swap_args"


def is_wrappers(model: Any) -> bool:
    """Whether a model is the wrapper pack's; it keeps a `pipeline` where ComfyUI has none."""
    inner = getattr(model, "model", None)
    return hasattr(model, "model_options") and (inner is None or hasattr(inner, "pipeline"))


def swap_on_wrappers(model: Any, args: BlockSwapArgs, node_id: str | None) -> tuple[Any, str]:
    """A clone that runs with its blocks streamed, by us or by the pack, and a sentence about it.

    Raises SelectionError for blocks that the model lacks, ModelError for a model whose layers the
    pack moves one by one, ArgsError for what the pack cannot do where it swaps by itself.
    """
    lacking, pack = missing(model), pack_of(model)
    if lacking is not None or pack is None:
        return _hand_over(model, args, str(lacking))
    _refuse_managed(model)
    transformer = bare_transformer(model)
    said = said_of(args, layout_of(transformer))
    take_over(transformer, pack)
    wish = Wish(args, node_id)
    asked = dict.fromkeys(SETTINGS, False) | {"prefetch_blocks": 0}
    asked |= {key: Count(MOST_INDEX, wish) for key in COUNTS}
    return _carrying(model, asked, said), said


def what_was_said(model: Any) -> str:
    """The sentence about what was handed over with a model, for a report."""
    options = model.model_options.get("transformer_options", {})
    return str(options.get(_SAID) or _sentence(options.get(_ARGS)))


def takeover_on(model: Any) -> Takeover | None:
    """What is hung on the model's transformer, if its blocks were ever streamed by us."""
    transformer = bare_transformer(model)
    return None if transformer is None else takeover_of(transformer)


def _carrying(model: Any, asked: dict[str, Any], said: str) -> Any:
    clone = model.clone()
    options = clone.model_options.setdefault("transformer_options", {})
    options[_ARGS] = asked
    options[_SAID] = said
    logging.info("blockswap: %s", said)
    return clone


def _refuse_managed(model: Any) -> None:
    if pipeline_of(model).get("auto_cpu_offload"):
        raise ModelError(MANAGED)


# The pack's own swap.


def _hand_over(model: Any, args: BlockSwapArgs, lacking: str) -> tuple[Any, str]:
    blocks = getattr(bare_transformer(model), "blocks", None)
    total = None if blocks is None else len(blocks)
    because = f" (this version of it has no {lacking}, which we would stream its blocks through)"
    _refuse_budgets(args, because)
    count = _count(args, total, because)
    asked = {key: args.to_mapping()[key] for key in SETTINGS}
    corrected = count > 0 and not _swaps_as_many_as_it_says(model)
    asked["blocks_to_swap"] = count + corrected
    said = _sentence(asked, count, because if pack_of(model) is not None else "")
    return _carrying(model, asked, said), said


def _sentence(asked: Any, count: int | None = None, because: str = "") -> str:
    told = asked["blocks_to_swap"] if isinstance(asked, dict) and asked else asked
    said = (
        "this is a model of WanVideoWrapper, which swaps blocks itself"
        f"{because}: {told if count is None else count} blocks were asked of it, the last ones"
    )
    if count is None or told == count:
        return said
    return said + "; it swaps one fewer than its count says, so it was handed one more"


def _refuse_budgets(args: BlockSwapArgs, because: str) -> None:
    for key in ("vram_budget", "ram_budget", "block_lists"):
        if getattr(args, key) not in (None, ()):
            raise ArgsError(
                f"{key} was asked of a model of WanVideoWrapper, whose own block swap knows only "
                f"how many blocks{because}: give blocks_to_swap instead, or use ComfyUI's own "
                "loader"
            )


def _count(args: BlockSwapArgs, total: int | None, because: str) -> int:
    """How many of the last blocks are asked for."""
    listed = args.block_list
    if listed is None:
        return int(args.to_mapping()["blocks_to_swap"])
    if total is not None and not listed.by_list:
        listed.check_against_model(total)
    count = len(listed.indices)
    if total is None or listed.by_list or listed.indices != tuple(range(total - count, total)):
        raise ArgsError(
            f"blocks='{listed.text}' was asked of a model of WanVideoWrapper, whose own block swap "
            f"takes the last blocks only{because}: give blocks_to_swap instead, or use ComfyUI's "
            "own loader"
        )
    return count


def _swaps_as_many_as_it_says(model: Any) -> bool:
    """Whether the pack places this model's blocks by the count as it is.

    It decides so when it samples: a LoRA that is not merged may still come after this node.
    """
    pipeline = pipeline_of(model)
    unmerged = bool(getattr(model, "patches", None)) and pipeline.get("sd") is not None
    own = bool(getattr(bare_transformer(model), "patched_linear", False))
    return own or unmerged or pipeline.get("gguf_reader") is not None
