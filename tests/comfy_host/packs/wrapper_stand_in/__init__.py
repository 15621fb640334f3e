"""Stands for the wrapper pack: its ids, the contract of its arguments, its order of calls.

No code of it is here. `WanVideoBlockSwap` makes arguments, `WanVideoSetBlockSwap` hands them to a
model, and `WanVideoBlockList` reads a text. Arguments reach its sampler in the model's
`transformer_options`. What block swap touches of a run has the real one's names and shape.
"""

from .nodes_model_loading import WanVideoModelLoader
from .nodes_sampler import WanVideoSampler

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
