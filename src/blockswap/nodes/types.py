"""The types and texts that several nodes share."""

from dataclasses import fields
from inspect import signature
from typing import Any

from comfy_api.latest import io

CATEGORY = "WanVideo/block swap"
BlockSwapArgsType = io.Custom("BLOCKSWAPARGS")
WanVideoModel = io.Custom("WANVIDEOMODEL")
AnyModel = io.Custom("MODEL,WANVIDEOMODEL")


def found_by(*aliases: str) -> dict[str, Any]:
    """Words that the page's search finds a node by, where this core's schema has them."""
    known = "search_aliases" in {field.name for field in fields(io.Schema)}
    return {"search_aliases": list(aliases)} if known else {}


def rarely_used() -> dict[str, bool]:
    """For inputs that most leave alone: the page folds them away, where this core can say so."""
    known = "advanced" in signature(io.Combo.Input.__init__).parameters
    return {"advanced": True} if known else {}


def model_input(tooltip: str) -> Any:
    return io.MultiType.Input("model", types=[io.Model, WanVideoModel], tooltip=tooltip)


def args_input() -> Any:
    return BlockSwapArgsType.Input(
        "block_swap_args",
        optional=True,
        tooltip="Which blocks, how many, and with how much memory. Leave it unconnected and the "
        "plan is made from the memory that is free.",
    )
