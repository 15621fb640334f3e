"""Models of the wrapper pack (WANVIDEOMODEL): block swap there is that pack's own.

Its sampler reads a dictionary from the model's `transformer_options`; that is what we hand over.
It knows a count and swaps the last blocks. For a model whose linears are its own (fp8 with scales,
GGUF, LoRAs that are not merged) it swaps as many as the count says, for any other one fewer: there
the count is handed over one higher. What it has no word for is refused, never dropped.
"""

import logging
from typing import Any

from ..errors import ArgsError
from ..selection import BlockSwapArgs

_SAID = "blockswap_said"


def is_wrappers(model: Any) -> bool:
    """Whether a model is the wrapper pack's; it keeps a `pipeline` where ComfyUI has none."""
    inner = getattr(model, "model", None)
    return hasattr(model, "model_options") and (inner is None or hasattr(inner, "pipeline"))


def hand_over(model: Any, args: BlockSwapArgs) -> tuple[Any, str]:
    """A clone that carries `args` in the wrapper pack's own contract, and a sentence about it.

    Raises SelectionError for blocks that the model lacks, ArgsError for what the pack cannot do.
    """
    blocks = getattr(_transformer(model), "blocks", None)
    total = None if blocks is None else len(blocks)
    _refuse_budgets(args)
    count = _count(args, total)
    clone = model.clone()
    asked = {key: args.to_mapping()[key] for key in _ITS_WORDS}
    corrected = count > 0 and not _swaps_as_many_as_it_says(model)
    asked["blocks_to_swap"] = count + corrected
    options = clone.model_options.setdefault("transformer_options", {})
    options["block_swap_args"] = asked
    options[_SAID] = said = _sentence(count, corrected=corrected)
    logging.info("blockswap: %s", said)
    return clone, said


def what_was_said(model: Any) -> str:
    """The sentence about what was handed over with a model, for a report."""
    options = model.model_options.get("transformer_options", {})
    return str(options.get(_SAID) or _sentence(options.get("block_swap_args"), corrected=False))


_ITS_WORDS = (
    "blocks_to_swap",
    "offload_img_emb",
    "offload_txt_emb",
    "use_non_blocking",
    "vace_blocks_to_swap",
    "prefetch_blocks",
    "block_swap_debug",
)


def _transformer(model: Any) -> Any:
    return getattr(getattr(model, "model", None), "diffusion_model", None)


def _sentence(count: Any, *, corrected: bool) -> str:
    said = (
        f"this is a model of WanVideoWrapper, which swaps blocks itself: {count} blocks were asked "
        "of it, the last ones"
    )
    if not corrected:
        return said
    return said + "; it swaps one fewer than its count says, so it was handed one more"


def _refuse_budgets(args: BlockSwapArgs) -> None:
    for key in ("vram_budget", "ram_budget", "block_lists"):
        if getattr(args, key) not in (None, ()):
            raise ArgsError(
                f"{key} was asked of a model of WanVideoWrapper, whose own block swap knows only "
                "how many blocks: give blocks_to_swap instead, or use ComfyUI's own loader"
            )


def _count(args: BlockSwapArgs, total: int | None) -> int:
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
            "takes the last blocks only: give blocks_to_swap instead, or use ComfyUI's own loader"
        )
    return count


def _swaps_as_many_as_it_says(model: Any) -> bool:
    """Whether the pack places this model's blocks by the count as it is.

    It decides so when it samples: a LoRA that is not merged may still come after this node.
    """
    inner = getattr(model, "model", None)
    pipeline = getattr(inner, "pipeline", None) or {}
    unmerged = bool(getattr(model, "patches", None)) and pipeline.get("sd") is not None
    own = bool(getattr(_transformer(model), "patched_linear", False))
    return own or unmerged or pipeline.get("gguf_reader") is not None
