"""The node *Load Wan Model (Block Swap)*: a checkpoint whose blocks are streamed from its file."""

import os
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..swap import as_args
from .clone.overrides import plan_text
from .loading import load_streamed
from .runs.status import send_text
from .runs.wish import Wish
from .seams.host_checkpoints import WEIGHT_DTYPES
from .types import CATEGORY, args_input, found_by, rarely_used


def _files() -> list[str]:
    """What ComfyUI lists as diffusion models, and the GGUF files beside them, which it does not."""
    named: list[str] = folder_paths.get_filename_list("diffusion_models")
    packed: set[str] = set()
    for folder in folder_paths.get_folder_paths("diffusion_models"):
        if os.path.isdir(folder):
            files, _ = folder_paths.recursive_search(folder, excluded_dir_names=[".git"])
            packed |= set(folder_paths.filter_files_extensions(files, {".gguf"}))
    return [*named, *sorted(packed - set(named))]


class BlockSwapLoaderNode(io.ComfyNode):
    """Opens a checkpoint without ever holding all of it in memory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BlockSwapWanVideoLoader",
            display_name="Load Wan Model (Block Swap)",
            category=CATEGORY,
            **found_by("load wan model", "low ram", "low vram", "stream from disk"),
            description="Loads a Wan checkpoint for machines with little RAM: its blocks are read "
            "from the file each time they run, and the whole model is never in memory.",
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    options=_files(),
                    tooltip="A .safetensors file in models/diffusion_models, or a .gguf file where "
                    "the pack ComfyUI-GGUF is installed.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="What the weights are kept in, as in ComfyUI's own loader. default: as "
                    "ComfyUI would have them from this file.",
                    **rarely_used(),
                ),
                args_input(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The model, with block swap on it already: it needs no further node.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, unet_name: str, weight_dtype: str = "default", block_swap_args: Any = None
    ) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        node_id = cls.hidden.unique_id if cls.hidden is not None else None
        send_text(node_id, f"opening {unet_name}: its header is read")
        model = load_streamed(path, Wish(as_args(block_swap_args), node_id), weight_dtype)
        send_text(node_id, plan_text(model))
        return io.NodeOutput(model)
