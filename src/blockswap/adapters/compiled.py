"""How a module was compiled, as torch keeps it: the context that `compile` was called with."""

from typing import Any

import torch

IMPL = "_compiled_call_impl"  # what a module runs instead of its call once it is compiled
_NOTE = "_blockswap_context"


def compile_context(module: torch.nn.Module) -> Any | None:
    """What compiles a function as `module.compile` or `torch.compile(module)` did; None: unknown.

    What torch keeps of `compile` is private: where it looks otherwise, nothing is found.
    """
    compiled = vars(module).get(IMPL)
    if compiled is None:
        return vars(module).get("dynamo_ctx")
    if (noted := getattr(compiled, _NOTE, None)) is not None:
        return noted
    for cell in getattr(compiled, "__closure__", None) or ():
        if hasattr(cell.cell_contents, "compiler_config"):
            return cell.cell_contents
    return None


def note_context(stand_in: Any, context: Any) -> Any:
    """Notes the context of what a function stands in for."""
    setattr(stand_in, _NOTE, context)
    return stand_in
