"""The node *WanVideo Block Swap*: a model in, a clone of it that runs with its blocks streamed."""

from typing import Any

from comfy_api.latest import io

from ..swap import as_args
from .clone.overrides import plan_text
from .clone.patcher import swap_on_clone
from .runs.status import send_text
from .runs.wish import Wish
from .types import CATEGORY, AnyModel, args_input, found_by, model_input
from .wrapper.pack import is_wrappers, swap_on_wrappers

ALIAS = "WanVideoBlockSwap"


class BlockSwapNode(io.ComfyNode):
    """Puts block swap on a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("BlockSwapWanVideo")

    @classmethod
    def execute(cls, model: Any, block_swap_args: Any = None) -> io.NodeOutput:
        args = as_args(block_swap_args)
        node_id = cls.hidden.unique_id if cls.hidden is not None else None
        if is_wrappers(model):
            clone, said = swap_on_wrappers(model, args, node_id)
            send_text(node_id, said)
            return io.NodeOutput(clone)
        clone = swap_on_clone(model, Wish(args, node_id))
        send_text(node_id, plan_text(clone))
        return io.NodeOutput(clone)


class BlockSwapAliasNode(BlockSwapNode):
    """The same under the id that the node has in other places; for prompts, not for the menu."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = _schema(ALIAS)
        # The menu leaves deprecated nodes out; newer cores can say it in so many words.
        schema.is_deprecated = True
        if hasattr(schema, "is_dev_only"):
            schema.is_dev_only = True
        return schema


def _schema(node_id: str) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name="WanVideo Block Swap",
        category=CATEGORY,
        **found_by("block swap", "low vram", "offload", "stream blocks", "flux", "qwen image"),
        description="Streams transformer blocks of a Wan model, or of any other made of blocks "
        "(Flux, Qwen-Image, HunyuanVideo, LTX), to the device just before they run, so that a "
        "model runs that does not fit. The result is the same to the last bit.",
        inputs=[
            model_input(
                "A Wan model: T2V, I2V, VACE, 5B or either 14B expert, LoRAs and all; also a model "
                "of WanVideoWrapper, whose own block swap then has nothing to do."
            ),
            args_input(),
        ],
        outputs=[
            AnyModel.Output(
                display_name="model", tooltip="The model, for a sampler or further model nodes."
            )
        ],
        hidden=[io.Hidden.unique_id],
    )
