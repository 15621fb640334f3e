"""Who else touches a block or a model: found before each run, and told in words.

Two questions. May a block run in pieces? Not if something hangs on one of its parts, for pieces
call a part another number of times than the whole does, or not at all. May it write into the
tensor that it is handed? Only if nobody but our own forward of the model can hold that tensor:
nothing hangs on any block, on the model, or on all modules of the process.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..adapters.compiled import IMPL, compile_context
from .family import Family

_OWN = "blockswap."
_MARK = "_in_pieces_of"
_TABLES = ("_forward_hooks", "_forward_pre_hooks")
_GLOBAL_TABLES = ("_global_forward_hooks", "_global_forward_pre_hooks")


def why_whole(block: torch.nn.Module, family: Family) -> str | None:
    """Why a block must run whole at this moment; None where pieces serve."""
    if not family.is_block(block):
        return f"{type(block).__name__} is no block that is known in pieces"
    if getattr(block, IMPL, None) is not None and not _is_cut_when_compiled(block, family):
        return "it is compiled"
    for name, module in block.named_modules():
        said = _why_part(name, module) if name else None
        said = said or _why_layer(name, module, family)
        if said is not None:
            return said
    return None


def _is_cut_when_compiled(block: torch.nn.Module, family: Family) -> bool:
    return family.compiles(block) and compile_context(block) is not None


def mark(forward: Any) -> Any:
    """Marks a forward as ours, by its own number: wrappers copy attributes."""
    setattr(forward, _MARK, id(forward))
    return forward


def why_before(module: torch.nn.Module, name: str = "forward") -> str | None:
    """Why ours is not put on a block or model that other code came to first: theirs is to call."""
    forward = vars(module).get(name)
    if forward is None or getattr(forward, _MARK, None) == id(forward):
        return None
    return "its forward was replaced by other code before"


def _why_part(name: str, module: torch.nn.Module) -> str | None:
    if "forward" in vars(module):
        return f"the forward of its {name} was replaced by other code"
    if hook := next(_foreign_hooks(module), None):
        return f"{_named(hook)} is hooked on its {name}"
    return None


def _why_layer(name: str, module: Any, family: Family) -> str | None:
    kind = type(module)
    if why := family.why_part(name, module):
        return why
    if isinstance(module, torch.nn.Dropout) and module.training and module.p > 0:
        return f"its {name} drops at random"
    of_peft = kind.__module__.startswith("peft.tuners.lora.")
    if name and kind.__name__ not in family.layers and not of_peft:
        return f"its {name} is a {kind.__name__}, which may look at all tokens together"
    weight = module._parameters.get("weight")
    if weight is not None and not _is_plain(weight, family.packed_weights):
        return f"the weight of its {name} is a {type(weight.data).__name__}"
    return None


def _is_plain(weight: torch.Tensor, packed: frozenset[str]) -> bool:
    kind = type(weight.data)
    plain = kind in (torch.Tensor, torch.nn.Parameter) or kind.__module__.startswith(_OWN)
    return plain or kind.__name__ in packed


def onlookers(blocks: Iterable[torch.nn.Module]) -> str | None:
    """Who may hold the hidden states between blocks, in words; None if nobody can."""
    module: Any = torch.nn.modules.module
    for table in _GLOBAL_TABLES:
        for hook in getattr(module, table, {}).values():
            if not _is_own(hook):
                return f"{_named(hook)} is hooked on all modules"
    for block in blocks:
        if hook := next(_foreign_hooks(block), None):
            return f"{_named(hook)} is hooked on a block"
    return None


def _foreign_hooks(module: torch.nn.Module) -> Iterator[Any]:
    for table in _TABLES:
        for hook in getattr(module, table).values():
            if not _is_own(hook):
                yield hook


def _is_own(call: Any) -> bool:
    return str(getattr(call, "__module__", None) or type(call).__module__).startswith(_OWN)


def _named(hook: Any) -> str:
    return str(getattr(hook, "__qualname__", None) or type(hook).__name__)


def why_parts(root: torch.nn.Module, blocks: Iterable[torch.nn.Module]) -> str | None:
    """What other code has put on the model's parts outside its blocks, in words; None: nothing."""
    inside = {id(module) for block in blocks for module in block.modules()}
    for name, module in root.named_modules():
        if name and id(module) not in inside and (why := _why_part(name, module)):
            return why
    return None
