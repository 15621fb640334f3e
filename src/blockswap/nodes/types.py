"""The types and texts that several nodes share."""

from typing import Any

from comfy_api.latest import io

CATEGORY = "WanVideo/block swap"
BlockSwapArgsType = io.Custom("BLOCKSWAPARGS")
WanVideoModel = io.Custom("WANVIDEOMODEL")
AnyModel = io.Custom("MODEL,WANVIDEOMODEL")


def model_input(tooltip: str) -> Any:
    return io.MultiType.Input("model", types=[io.Model, WanVideoModel], tooltip=tooltip)


def args_input() -> Any:
    return BlockSwapArgsType.Input(
        "block_swap_args",
        optional=True,
        tooltip="Which blocks, how many, and with how much memory. Leave it unconnected and the "
        "plan is made from the memory that is free.",
    )
