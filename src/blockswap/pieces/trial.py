"""Whether a model can run in pieces at all: its class is known, and gives the same both ways.

A small model of the same classes with random weights runs whole and in pieces, once in a process
for each kind of configuration. Another version of the host library whose forward does something
else is found that way, and the model runs whole, with a sentence.
"""

from typing import Any

import torch

from ..adapters.families import bare
from ..ambient import as_at_start
from .diffusers_family import DIFFUSERS
from .family import Family, Small
from .install import Pieces
from .onlookers import why_before, why_whole
from .replaced import why_replaced

_TOLERANCE = 1e-4  # of the largest value, in fp32: far above another order of adding, far below 1
_LEAST = 64
_found: dict[tuple[Any, ...], str | None] = {}


def why_never(model: torch.nn.Module, family: Family = DIFFUSERS) -> str | None:
    """Why a model as it stands cannot run in pieces; None where it can."""
    root = bare(model)
    if why := family.why_another(root):
        return why
    small = family.small(root)
    if small is None:
        return f"{type(root).__name__} is no model that is known in pieces"
    for name, block in family.blocks(root).items():
        if why := why_before(block) or why_replaced(block) or why_whole(block, family):
            return f"{name}: {why}"
    if small.key not in _found:
        _found[small.key] = _try(type(root).__name__, small, family)
    return _found[small.key]


@as_at_start()
def _try(name: str, small: Small, family: Family) -> str | None:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        said: list[str] = []
        try:
            model = small.make().eval()
            whole = _run(small, model)
            pieces = Pieces(model, _LEAST, said.append, family=family)
            try:
                cut = _run(small, model)
            finally:
                pieces.remove()
        except Exception as raised:  # noqa: BLE001 - a forward that is not known may do anything
            return f"a small {name} cannot run in pieces ({raised!r:.80})"
    if said:
        return said[0]
    most = float(whole.abs().max())
    error = float((whole - cut).abs().max())
    if not error <= _TOLERANCE * most:
        return (
            f"a small {name} gave another result in pieces than whole (off by "
            f"{error / most:.1e} of the largest value), so this version's forward is not known"
        )
    return None


def _run(small: Small, model: Any) -> torch.Tensor:
    torch.manual_seed(1)
    return small.run(model)
