"""A pipeline's call gone through without its weights: what each model's turn will take, beforehand.

The pipeline's own code runs on the host, tokenizers and scheduler included; its models do not. Each
call of one is followed on meta tensors and answered with zeros of its output's shapes, until a
decoder has its turn. What is known of the call to come is then the plan of each turn.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from .call_plan import CallPlan, Need, plan_of_call
from .needs import Followed
from .stage import Member, Stage, is_denoiser
from .turn import rounded

# What zeros may bring code to that has values to go on with.
_CODE_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class _Over(BaseException):
    """Ends a rehearsal: what comes now is known, and what follows calls no model."""


class Rehearsal:
    """Answers for the models of a pipeline, and keeps what their calls need."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.needs: dict[str, list[Need]] = {}
        self.stopped = ""  # why nothing is known beyond the last turn, where that is so
        self._alive: list[weakref.ref[torch.Tensor]] = []
        self._denoised = False

    def answer(
        self, member: Member, model: Any, call: Callable[..., Any], given: tuple[Any, Any]
    ) -> Any:
        """What a call gives, as zeros in host memory. Ends the rehearsal where it cannot be told,
        and after the first decoding that follows a denoiser."""
        self._note(given)
        found = self._follow(member, model, call, given)
        self._denoised |= is_denoiser(member)
        if call.__name__ == "decode" and self._denoised:
            raise _Over
        answer = _zeros(found.output)
        self._note(answer)
        return answer

    def _follow(
        self, member: Member, model: Any, call: Callable[..., Any], given: tuple[Any, Any]
    ) -> Followed:
        stage, held = self._stage, self._held()
        room = None if stage.budget is None else stage.budget - held
        found = stage.follow(member, model, call, given, room)
        if found is None:
            self.stopped = f"the call of {member.name} asks for values, and is followed only then"
            raise _Over
        tiled = bool(getattr(model, "use_tiling", False))
        self.needs.setdefault(member.name, []).append(Need(held, found.nbytes, tiled))
        return found

    def _note(self, tree: Any) -> None:
        """Remembers tensors that the pipeline may hold from now on."""
        leaves = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
        self._alive = [ref for ref in self._alive if ref() is not None]
        self._alive += [weakref.ref(leaf) for leaf in leaves]

    def _held(self) -> int:
        """Bytes of all that models were given or gave and that is still there."""
        seen = {}
        for tensor in (ref() for ref in self._alive):
            if tensor is not None:
                storage = tensor.untyped_storage()
                seen[storage.data_ptr()] = rounded(storage.nbytes())
        return sum(seen.values())


@contextmanager
def _set_aside(pipe: Any, stage: Stage, rehearsal: Rehearsal) -> Iterator[None]:
    """The pipeline answers by `rehearsal` inside; its scheduler and what it says stay as before."""
    kept, bar = dict(vars(pipe)), dict(getattr(pipe, "_progress_bar_config", None) or {})
    stage.rehearsal = rehearsal
    try:
        if getattr(pipe, "scheduler", None) is not None:
            vars(pipe)["scheduler"] = deepcopy(pipe.scheduler)
        vars(pipe)["_progress_bar_config"] = {**bar, "disable": True}
        yield
    finally:
        stage.rehearsal = None
        vars(pipe).clear()
        vars(pipe).update(kept)


def rehearse(
    pipe: Any, stage: Stage, members: Sequence[Member], args: Any, kwargs: dict[str, Any]
) -> CallPlan:
    """Goes through `pipe(*args, **kwargs)` and plans every turn; loads and computes nothing."""
    rehearsal = Rehearsal(stage)
    given = {k: _own(v) for k, v in kwargs.items() if not k.startswith("callback")}
    with _set_aside(pipe, stage, rehearsal):
        try:
            pipe(*map(_own, args), **given)
        except _Over:
            pass
        except _CODE_ERRORS as error:
            first = (str(error).splitlines() or [""])[0]
            rehearsal.stopped = f"{type(pipe).__name__} ended with {type(error).__name__}: {first}"
    return plan_of_call(stage, members, rehearsal.needs, rehearsal.stopped)


def _own(value: Any) -> Any:
    """A generator of the caller's is not moved on."""
    if isinstance(value, list):
        return [_own(one) for one in value]
    return torch.Generator(value.device) if isinstance(value, torch.Generator) else value


def _zeros(output: Any) -> Any:
    """The same nest with zeros in host memory for meta tensors; objects keep their class."""

    def real(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return torch.zeros(leaf.shape, dtype=leaf.dtype, device="cpu")
        own = getattr(leaf, "__dict__", None)
        if own and any(isinstance(value, torch.Tensor) for value in own.values()):
            made = copy(leaf)  # a distribution of latents, say
            vars(made).update({name: real(value) for name, value in own.items()})
            return made
        return leaf

    return tree_map(real, output)
