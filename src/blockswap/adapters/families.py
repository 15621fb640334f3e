"""Where Wan-Video's and diffusers' models keep blocks and embedders, and in what order they run.

Two ways of writing the same model are in use: Wan-Video's own (`WanModel`, also ComfyUI's) and
diffusers'. A family is a table of attribute paths, so no host library is imported to know it.
"""

from dataclasses import dataclass

import torch

from ..errors import ModelError
from ..layout.values import UnitKind


@dataclass(frozen=True, slots=True)
class Family:
    """Attribute paths of the parts of a model, in execution order."""

    name: str
    embedders: tuple[tuple[UnitKind, str], ...]
    block_lists: tuple[tuple[UnitKind, str], ...]


DIFFUSERS = Family(
    name="diffusers",
    embedders=(
        ("text_embedder", "condition_embedder.text_embedder"),
        ("image_embedder", "condition_embedder.image_embedder"),
    ),
    block_lists=(("vace", "vace_blocks"), ("block", "blocks")),
)
ORIGINAL = Family(
    name="original",
    embedders=(("text_embedder", "text_embedding"), ("image_embedder", "img_emb")),
    block_lists=(("vace", "vace_blocks"), ("block", "blocks")),
)


@dataclass(frozen=True, slots=True)
class UnitModule:
    """A module that can be streamed as one unit, and where it hangs."""

    name: str
    kind: UnitKind
    index: int
    module: torch.nn.Module


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside a `torch.compile` wrapper, or the model itself."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, torch.nn.Module) else model


def unit_modules(model: torch.nn.Module) -> tuple[UnitModule, ...]:
    """The units of a live model in execution order. Raises ModelError when it has no blocks."""
    family = DIFFUSERS if _at(model, "condition_embedder") is not None else ORIGINAL
    units: list[UnitModule] = []
    seen: set[torch.nn.Module] = set()  # a block may stand in the list twice: it is one unit
    for kind, path in family.embedders:
        module = _at(model, path)
        if module is not None and next(module.parameters(), None) is not None:
            units.append(UnitModule(path, kind, 0, module))
    blocks = 0
    for kind, path in family.block_lists:
        for index, module in enumerate(_children(_at(model, path))):
            if module not in seen:
                units.append(UnitModule(f"{path}.{index}", kind, index, module))
                blocks += kind == "block"
            seen.add(module)
    if blocks == 0:
        raise ModelError(
            f"{type(model).__name__} has no transformer blocks (no module list `blocks`): block "
            "swap needs a Wan transformer such as WanTransformer3DModel or WanModel"
        )
    return tuple(units)


def _at(model: torch.nn.Module, path: str) -> torch.nn.Module | None:
    module: object = model
    for part in path.split("."):
        module = getattr(module, part, None)
    return module if isinstance(module, torch.nn.Module) else None


def _children(module: torch.nn.Module | None) -> list[torch.nn.Module]:
    if isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)):
        return list(module)
    return []
