"""GGUF packs as ComfyUI loads them: a stand-in, or the real one where BLOCKSWAP_GGUF names it."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.sd
import torch

from comfy_host.checkpoints import write_gguf
from comfy_host.environment import HERE

REAL = os.environ.get("BLOCKSWAP_GGUF")
HOMES = {"stand-in": HERE / "packs" / "gguf_stand_in", **({"real": Path(REAL)} if REAL else {})}


def pack(name: str) -> Any:
    """What the module of the pack's loader node works with; registered with ComfyUI."""
    import nodes

    full = f"/packs/{HOMES[name].name}".replace(".", "_x_")
    if full not in sys.modules:
        spec: Any = importlib.util.spec_from_file_location(full, HOMES[name] / "__init__.py")
        module = sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    registered = sys.modules[full].NODE_CLASS_MAPPINGS
    nodes.NODE_CLASS_MAPPINGS.update(registered)
    found: ModuleType = sys.modules[registered["UnetLoaderGGUF"].__module__]
    return found


def written(path: Path, weights: dict[str, torch.Tensor], kind: str = "Q8_0") -> str:
    return str(write_gguf(path, weights, kind))


def loaded(name: str, path: str) -> Any:
    """The patcher that the pack's own loader makes of a file."""
    found = pack(name)
    state = found.gguf_sd_loader(path)
    state = state[0] if isinstance(state, tuple) else state
    options = {"custom_operations": found.GGMLOps()}
    return found.GGUFModelPatcher.clone(
        comfy.sd.load_diffusion_model_state_dict(state, model_options=options)
    )
