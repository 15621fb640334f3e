"""Who is on the device: the model that is called comes, the one before it leaves."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_map

from ..errors import ModelError, PlanError, StateError
from ..stream.device import Device
from ..swap.running.out_of_memory import Attempt
from ..units import format_bytes
from .needs import Followed, follow_call
from .turn import Turn, device_bytes, weight_bytes


@dataclass
class Member:
    """A model of the pipeline, or several that are there together; what is known of their turns."""

    names: tuple[str, ...]
    models: tuple[torch.nn.Module, ...]
    weights: int = 0
    turns: int = 0
    streamed: bool = False
    activation_bytes: int | None = None
    signature: Any = None
    sentences: list[str] = field(default_factory=list)
    tiles: str = ""  # what is said of its tiles, where it was put into them

    def __post_init__(self) -> None:
        self.weights = sum(map(weight_bytes, self.models))

    @property
    def name(self) -> str:
        return " and ".join(self.names)


class Stage:
    """The device and whose turn it is. `vram_budget` counts from what is there when it is made."""

    def __init__(
        self, where: Device, vram_budget: int | None, ram_budget: int | None, workload: Any
    ) -> None:
        self._where, self._workload, self.ram_budget = where, workload, ram_budget
        self._before = where.allocated_bytes()
        self.budget = where.free_bytes() if vram_budget is None else vram_budget
        self.tiled: bool | None = None
        self._tilings: list[tuple[Any, bool]] = []  # models, and whether they had tiles before
        self.rehearsal: Any = None  # who answers for the models while a call is gone through
        self._followed: dict[Any, Followed | None] = {}
        self._now: Member | None = None
        self._turn: Turn | None = None
        self._calls = 0  # of the pipeline, under way
        self._calling, self._turning = threading.RLock(), threading.RLock()

    @contextmanager
    def call_of(self, pipeline: str) -> Iterator[None]:
        """A call of the pipeline, after which nobody is on the device: between calls each weight
        is where its user put it. Raises StateError where another thread runs the pipeline."""
        with _alone(self._calling, pipeline):
            self._calls += 1
            try:
                yield
            finally:
                self._calls -= 1
                if not self._calls:
                    self.clear()

    @contextmanager
    def turn_of(self, name: str) -> Iterator[None]:
        """A call of a model. Raises StateError where another thread has one of the stage's."""
        with _alone(self._turning, name):
            yield

    def refuse_running(self, pipeline: str) -> None:
        """Raises StateError while a call is under way, whoever made it."""
        if self._calls:
            raise StateError(
                f"this swap was to be closed while its {pipeline} runs: do it after that call has "
                "returned"
            )

    @property
    def device(self) -> torch.device:
        return self._where.torch_device

    def enter(
        self,
        member: Member,
        model: torch.nn.Module,
        call: Callable[..., Any],
        given: tuple[Any, Any],
    ) -> tuple[Any, Any]:
        """Gives `member` the device if it has not got it, and the inputs as they are there.

        `call` is the method of the model's class. A call of other shapes is looked at anew: a model
        that lies there whole and leaves too little for it is streamed then.
        """
        args, kwargs = self._there(given)
        signature = call_like(call, args, kwargs)
        if self.device.type == "cpu" or (self._now is member and member.signature == signature):
            return args, kwargs
        if self._now is not member:
            self.clear()
        if self._now is not member or not member.streamed:
            room = self._room()
            there = sum(map(device_bytes, member.models)) if self._now is member else 0
            whole = None if room is None else room + there  # its own weights are no one else's
            found = self.follow(member, model, call, (args, kwargs), whole)
            needs = None if found is None else found.nbytes
            member.activation_bytes = needs
            if self._now is not member or (room is not None and (needs or 0) > room):
                self._open(member, needs or 0)
        member.signature = signature
        return args, kwargs

    def make_room(self, member: Member, model: Any) -> bool:
        """After a call that could not be followed ran out of memory: whether it may be tried again.

        A decoder works in tiles then, any other model is streamed with half of the room left free.
        """
        room = self.budget
        if self._may_tile(model) and not getattr(model, "use_tiling", False):
            self._tile(member, model, "whole it ran out of memory")
            return True
        if room is None or member.streamed or member.activation_bytes is not None:
            return False
        self._open(member, max(room // 2, room - member.weights + 1))
        return True

    def attempt(self) -> Attempt:
        """A call that begins now, for the case that it runs out of memory."""
        return Attempt(self._where)

    def switch_tiling(self, model: Any, on: bool) -> None:
        """Tiles of a model's own, until `restore_tiling`; nothing for a model without."""
        switch = getattr(model, "enable_tiling" if on else "disable_tiling", None)
        if switch is not None:
            self._tilings.append((model, bool(getattr(model, "use_tiling", False))))
            switch()

    def restore_tiling(self) -> None:
        """Every model has tiles again, or none, as it came."""
        for model, had in reversed(self._tilings):
            (model.enable_tiling if had else model.disable_tiling)()
        self._tilings.clear()

    def clear(self) -> None:
        """Takes whoever is there off the device."""
        turn, self._turn, self._now = self._turn, None, None
        if turn is not None:
            turn.close()

    def _open(self, member: Member, needs: int) -> None:
        self.clear()
        budget = self._room()
        workload = self.workload_of(member)
        try:
            self._turn = Turn(
                member.models, self.device, budget=budget, activation_bytes=needs,
                ram_budget=self.ram_budget, workload=workload,
            )  # fmt: skip
        except (PlanError, ModelError) as error:
            raise PlanError(
                f"{member.name} does not fit {format_bytes(self.budget or 0)} of the device, of "
                f"which its call needs {format_bytes(needs)} beside weights and the pipeline holds "
                f"{format_bytes((self.budget or 0) - (budget or 0))}: {error}"
            ) from error
        self._now = member
        member.turns += 1
        member.streamed = self._turn.plan is not None
        member.sentences = [] if self._turn.plan is None else list(self._turn.plan.sentences)

    def follow(
        self,
        member: Member,
        model: Any,
        call: Callable[..., Any],
        given: tuple[Any, Any],
        room: int | None,
    ) -> Followed | None:
        """What a call takes and gives; a decoder that does not fit `room` works in tiles from now.

        Each is followed once: what libraries keep from a first time is not there in a second.
        """
        found = self._followed_once(model, call, given)
        if found is not None and self._must_tile(member, model, found.nbytes, room):
            found = self._followed_once(model, call, given)
        return found

    def _followed_once(
        self, model: Any, call: Callable[..., Any], given: tuple[Any, Any]
    ) -> Followed | None:
        args, kwargs = given
        tiles = bool(getattr(model, "use_tiling", False))
        key = (id(model), tiles, call_like(call, args, kwargs))
        if key not in self._followed:
            self._followed[key] = follow_call(model, call, args, kwargs, self.device.type)
        return self._followed[key]

    def _must_tile(self, member: Member, model: Any, needs: int, room: int | None) -> bool:
        """Whether a decoder that does not fit whole was put into its tiles just now."""
        fits = room is None or device_bytes(model) + needs <= room
        if fits or not self._may_tile(model) or getattr(model, "use_tiling", False):
            return False
        self._tile(member, model, f"whole it needs {format_bytes(needs)} beside its weights")
        return True

    def _may_tile(self, model: Any) -> bool:
        return self.tiled is None and hasattr(model, "enable_tiling")

    def _tile(self, member: Member, model: Any, why: str) -> None:
        self.switch_tiling(model, on=True)
        member.tiles = f"it works in its own tiles, which are blended at their seams: {why}"

    def workload_of(self, member: Member) -> Any:
        """The clip that the plan for its blocks follows; None where the caller named none."""
        return self._workload if is_denoiser(member) else None

    def _room(self) -> int | None:
        """The budget without what is there by now: the pipeline's own tensors, and models."""
        if self.budget is None:
            return None
        held = max(0, self._where.allocated_bytes() - self._before)
        return max(0, self.budget - held)

    def _there(self, given: tuple[Any, Any]) -> tuple[Any, Any]:
        def move(leaf: Any) -> Any:
            return leaf.to(self.device) if isinstance(leaf, torch.Tensor) else leaf

        moved: tuple[Any, Any] = tree_map(move, given)
        return moved


@contextmanager
def _alone(lock: Any, name: str) -> Iterator[None]:
    if not lock.acquire(blocking=False):
        raise StateError(
            f"{name} was called while another thread runs it or another model of its pipeline, and "
            "they take turns on one device: make one call at a time, or build a second pipeline"
        )
    try:
        yield
    finally:
        lock.release()


def is_denoiser(member: Member) -> bool:
    """Whether it is what a pipeline calls step by step."""
    return any(name.startswith("transformer") for name in member.names)


def call_like(call: Callable[..., Any], args: Any, kwargs: Any) -> str:
    """What a call takes and gives depends on: its method, shapes and dtypes, and words.

    Numbers only where they are no step of a denoiser: each step would be another call.
    """
    telling = (bool, str) if call.__name__ == "forward" else (bool, str, int)

    def told(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return tuple(leaf.shape), leaf.dtype
        return leaf if isinstance(leaf, telling) else None

    return repr((call.__name__, tree_map(told, (args, kwargs))))
