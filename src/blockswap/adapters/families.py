"""Which modules of a model are its units: Wan's by their known names, any other's by the rule.

Two ways of writing Wan's model are in use: Wan-Video's own (`WanModel`, also ComfyUI's) and
diffusers'. They are known by attribute paths, so no host library is imported for it.
What other models call their blocks is found by `block_rule`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..layout.values import UnitKind
from .block_rule import FoundList, find_block_lists, given_block_lists
from .module_tree import describe_tree, repeated_classes, runs

# Wan's lists of blocks in execution order; VACE blocks have a count of their own.
VACE_LIST = "vace_blocks"
WAN_LISTS = (VACE_LIST, "blocks")
Embedders = tuple[tuple[UnitKind, str], ...]
_DIFFUSERS: Embedders = (
    ("text_embedder", "condition_embedder.text_embedder"),
    ("image_embedder", "condition_embedder.image_embedder"),
)
_ORIGINAL: Embedders = (("text_embedder", "text_embedding"), ("image_embedder", "img_emb"))


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


def unit_modules(model: torch.nn.Module, block_lists: Sequence[str] = ()) -> tuple[UnitModule, ...]:
    """The units of a live model: embedders that are known, then its blocks as it defines them.

    `block_lists`: the lists to take, by path, instead of those that the rule finds.
    Raises ModelError where it is not known what the blocks are.
    """
    tree = describe_tree(model)
    known = [path for path in WAN_LISTS if _called(_at(model, path))]
    if "blocks" not in known:
        known = []
    if block_lists:
        found = given_block_lists(tree, block_lists)
    else:
        found = find_block_lists(tree, repeated_classes(model), known=known)
    places = {path: place for place, path in enumerate(known)}
    in_order = sorted(found, key=lambda one: places.get(one.path, len(places)))
    blocks = tuple(_blocks(model, in_order))
    inside = {module for unit in blocks for module in unit.module.modules()}
    embedders = [
        unit
        for unit in (_embedders(model) if known else ())
        if inside.isdisjoint(unit.module.modules())
    ]
    return (*embedders, *blocks)


def _embedders(model: torch.nn.Module) -> list[UnitModule]:
    of_diffusers = _at(model, "condition_embedder") is not None
    units = []
    for kind, path in _DIFFUSERS if of_diffusers else _ORIGINAL:
        module = _at(model, path)
        if module is not None and next(module.parameters(), None) is not None:
            units.append(UnitModule(path, kind, 0, module))
    return units


def _blocks(model: torch.nn.Module, lists: Iterable[FoundList]) -> Iterator[UnitModule]:
    """The members of the lists, counted from list to list; VACE blocks have their own count."""
    count = {"block": 0, "vace": 0}
    for found in lists:
        kind: UnitKind = "vace" if found.path == VACE_LIST else "block"
        for name in found.members:
            yield UnitModule(name, kind, count[kind], model.get_submodule(name))
            count[kind] += 1


def _at(model: torch.nn.Module, path: str) -> torch.nn.Module | None:
    module: object = model
    for part in path.split("."):
        module = getattr(module, part, None)
    return module if isinstance(module, torch.nn.Module) else None


def _called(module: torch.nn.Module | None) -> bool:
    """Whether it is a list of modules of which one or more run by themselves."""
    if not isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)):
        return False
    return any(runs(member) for member in module)
