"""The ComfyUI pack: a folder of `custom_nodes` is loaded by its path, through this file.

Where there is no ComfyUI, or where this is no package (a test run that collects this folder, whose
name need not be one), it does nothing.
"""

import importlib.util

if __package__ and importlib.util.find_spec("comfy_api") is not None:
    from .src.blockswap.nodes.extension import comfy_entrypoint

    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
