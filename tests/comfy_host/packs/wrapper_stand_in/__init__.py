"""Stands for the wrapper pack: its three ids and the contract of its arguments, no code of it.

`WanVideoBlockSwap` makes arguments, `WanVideoSetBlockSwap` hands them to a model, and
`WanVideoBlockList` reads a text. Arguments reach its sampler in the model's `transformer_options`.
"""

import copy
import json

ARGUMENTS = {
    "blocks_to_swap": ("INT", {"default": 20, "min": 0, "max": 48}),
    "offload_img_emb": ("BOOLEAN", {"default": False}),
    "offload_txt_emb": ("BOOLEAN", {"default": False}),
}
MORE = {
    "use_non_blocking": ("BOOLEAN", {"default": False}),
    "vace_blocks_to_swap": ("INT", {"default": 0, "min": 0, "max": 15}),
    "prefetch_blocks": ("INT", {"default": 0, "min": 0, "max": 40}),
    "block_swap_debug": ("BOOLEAN", {"default": False}),
}


class WanVideoBlockSwap:
    RETURN_TYPES = ("BLOCKSWAPARGS",)
    RETURN_NAMES = ("block_swap_args",)
    FUNCTION = "setargs"
    CATEGORY = "WanVideoWrapper"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": ARGUMENTS, "optional": MORE}

    def setargs(self, **arguments) -> tuple:
        return (arguments,)


class Inner:
    """The pack's own `WanVideoModel`, which keeps what it needs in a `pipeline`."""

    def __init__(self) -> None:
        self.pipeline: dict = {}


class StandInModel:
    """What is known from outside of the pack's model: it is cloned, and carries options."""

    def __init__(self) -> None:
        self.model = Inner()
        self.model_options: dict = {"transformer_options": {}}

    def clone(self) -> "StandInModel":
        cloned = StandInModel()
        cloned.model_options = copy.deepcopy(self.model_options)
        return cloned


class WanVideoModelLoader:
    RETURN_TYPES = ("WANVIDEOMODEL",)
    FUNCTION = "load"
    CATEGORY = "WanVideoWrapper"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {}}

    def load(self) -> tuple:
        return (StandInModel(),)


class WanVideoSampler:
    RETURN_TYPES = ()
    FUNCTION = "process"
    CATEGORY = "WanVideoWrapper"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("WANVIDEOMODEL",)}}

    def process(self, model) -> dict:
        asked = model.model_options["transformer_options"].get("block_swap_args")
        return {"ui": {"text": [json.dumps(asked)]}}


class WanVideoSetBlockSwap:
    RETURN_TYPES = ("WANVIDEOMODEL",)
    FUNCTION = "loadmodel"
    CATEGORY = "WanVideoWrapper"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {"model": ("WANVIDEOMODEL",)},
            "optional": {"block_swap_args": ("BLOCKSWAPARGS",)},
        }

    def loadmodel(self, model, block_swap_args=None) -> tuple:
        patched = model.clone()
        if block_swap_args is not None:
            patched.model_options["transformer_options"]["block_swap_args"] = block_swap_args
        return (patched,)


class WanVideoBlockList:
    RETURN_TYPES = ("INT",)
    FUNCTION = "create_list"
    CATEGORY = "WanVideoWrapper"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"blocks": ("STRING", {"default": "1", "multiline": True})}}

    def create_list(self, blocks: str) -> tuple:
        return ([int(part) for part in blocks.split(",")],)


NODE_CLASS_MAPPINGS = {
    "WanVideoBlockSwap": WanVideoBlockSwap,
    "WanVideoSetBlockSwap": WanVideoSetBlockSwap,
    "WanVideoBlockList": WanVideoBlockList,
    "WanVideoModelLoader": WanVideoModelLoader,
    "WanVideoSampler": WanVideoSampler,
}
