"""The plan before a run: what the page asks for by a node's button, told from a file's header.

The page follows the links from the node to the loader of its model (`web/plan.js`) and sends what
stands in the widgets. Nothing is loaded, no prompt is queued.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import folder_paths
import torch

from ..errors import BlockSwapError, ModelError
from ..selection import BlockSwapArgs
from ..swap import as_args
from .args_node import args_from
from .loading import plan_for_file
from .runs.wish import Wish
from .seams import host
from .wrapper.beforehand import LOADER as WRAPPERS
from .wrapper.beforehand import plan_for_wrapper

PATH = "/blockswap/plan"
# Loaders whose file is known from their widgets, and whether blocks are streamed from that file.
_LOADERS = {
    "BlockSwapWanVideoLoader": True,
    "UNETLoader": False,
    "UnetLoaderGGUF": False,
    "UnetLoaderGGUFAdvanced": False,
}
_OWN_ARGS = "BlockSwapWanVideoArgs"
_WAIT = "the plan is told when the node runs"


def offer() -> None:
    """Answers the page at `PATH`, where there is a page."""
    host.answer(PATH, _answer)


async def _answer(asked: dict[str, Any]) -> dict[str, str]:
    text = await asyncio.get_running_loop().run_in_executor(None, planned, asked)
    host.show_text(str(asked.get("node_id")), text, asked.get("client_id"))
    return {"text": text}


def planned(asked: Mapping[str, Any]) -> str:
    """The plan, or why there is none, for what the page has found.

    `loader` and `file`: the class of the loader node and the file in its widget; `weight_dtype` or
    `base_precision` beside it; `joined`, `managed`: what is linked to the wrapper pack's loader;
    `args` and `args_node`: the widgets of the node of arguments, and its class.
    """
    try:
        path, args = _file_of(asked), _args_of(asked)
        if asked["loader"] == WRAPPERS:
            joined, managed = bool(asked.get("joined")), bool(asked.get("managed"))
            precision = str(asked.get("base_precision"))
            return plan_for_wrapper(path, args, precision, joined=joined, managed=managed)
        streamed, wish = _LOADERS[asked["loader"]], Wish(args)
        with host.between_prompts(), torch.inference_mode():
            dtype = str(asked.get("weight_dtype") or "default")
            return plan_for_file(path, wish, dtype, streamed=streamed)
    except BlockSwapError as error:
        return f"plan: {error}"


def _file_of(asked: Mapping[str, Any]) -> str:
    loader, file = asked.get("loader"), asked.get("file")
    if not loader:
        raise ModelError(f"no loader was found in front of this node: {_WAIT}")
    if loader not in (*_LOADERS, WRAPPERS) or not isinstance(file, str):
        raise ModelError(f"which file the loader {loader} opens is not known here: {_WAIT}")
    path: str | None = folder_paths.get_full_path("diffusion_models", file)
    if path is None:
        raise ModelError(f"{file} is not in models/diffusion_models: choose another file")
    return path


def _args_of(asked: Mapping[str, Any]) -> BlockSwapArgs:
    widgets = asked.get("args")
    if not isinstance(widgets, Mapping):
        return as_args(None)
    known = {k: v for k, v in widgets.items() if k in BlockSwapArgs.__dataclass_fields__}
    return args_from(known) if asked.get("args_node") == _OWN_ARGS else as_args(known)
