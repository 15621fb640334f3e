"""How adapters are merged into a weight on arrival: all in fp32, in their order, then one cast.

The reference is PEFT: the model in fp32, each adapter merged by its own layer's `merge`, then cast
to the compute dtype. Where the weight is stored as plain floats, the first addition is made in
place of the fp32 weight and the weight is added to it: a sum does not depend on its order, and a
copy of the weight in fp32 is saved.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..layout.dtypes import PLAIN_FLOATS
from ..layout.values import Leaf, contiguous_stride
from .additions import Addition, Run, Shape
from .scratch import Arrays, carve, scratch_bytes
from .steps import Cost, Join, Step, copy, in_turn

_FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Merged:
    """One adapter's part in a weight. `magnitude`: of a DoRA, whose `[out]` array comes last."""

    addition: Addition
    magnitude: bool = False

    @property
    def takes(self) -> int:
        return self.addition.takes + self.magnitude


@dataclass(frozen=True, slots=True)
class Merge:
    """Adds adapters to a weight: `base` decodes a packed one, plain floats need no step.

    Two DoRAs, or a DoRA behind another adapter, on one weight: its norm is that of the stored
    weight. PEFT finds that weight by subtracting what it has merged, which costs it last bits.
    """

    stored: tuple[Leaf, ...]
    base: tuple[Step, ...]
    computed: Leaf
    merged: tuple[Merged, ...]

    @property
    def takes(self) -> int:
        return len(self.stored) + sum(part.takes for part in self.merged)

    @property
    def scratch_bytes(self) -> int:
        return scratch_bytes(_fp32(self._kept)) + self._passing_bytes

    @property
    def cost(self) -> Cost:
        """Bytes and FLOPs of a visit: each addition is written once and added once."""
        own = sum((step.cost for step in self.base), Cost())
        whole = self.computed.elements * _FP32_BYTES
        moved = sum((Cost(2 * whole, 2 * whole, p.addition.flops) for p in self.merged), Cost())
        return own + moved + Cost(whole, self.computed.nbytes)

    def prepare(
        self, stored: Sequence[torch.Tensor], out: torch.Tensor, scratch: torch.Tensor
    ) -> Callable[[], None]:
        """As `Step.prepare`."""
        kept = carve(scratch, _fp32(self._kept))
        at = scratch_bytes(_fp32(self._kept))
        passing = scratch.narrow(0, at, self._passing_bytes)
        return in_turn(list(self._runs(stored, out, kept, passing)))

    @property
    def _first_in_place(self) -> bool:
        return not self.base and not self.merged[0].magnitude

    @property
    def _passing_bytes(self) -> int:
        """Scratch that the base and each adapter use in turn."""
        needs = [step.scratch_bytes for step in self.base]
        for number, part in enumerate(self.merged):
            need = scratch_bytes(_fp32(part.addition.work))
            if part.magnitude:
                need = max(need, self._norm_bytes + (self._measured_bytes if number else 0))
            needs.append(need)
        return max(needs, default=0)

    @property
    def _norm_bytes(self) -> int:
        """A DoRA's magnitude in fp32, and the norm."""
        return 2 * _room(self.computed.shape[:1])

    @property
    def _measured_bytes(self) -> int:
        """The weight whose norm it is, and what the base needs to make it once more."""
        own = max((step.scratch_bytes for step in self.base), default=0)
        return _room(self.computed.shape) + int(own)

    @property
    def _kept(self) -> tuple[Shape, ...]:
        """fp32 arrays that are kept throughout: the sum where `out` cannot hold it, an addition."""
        shape = self.computed.shape
        own_sum = () if self._sums_in_place else (shape,)
        apart = len(self.merged) > 1 or not self._first_in_place
        return (*own_sum, *((shape,) if apart else ()))

    @property
    def _sums_in_place(self) -> bool:
        """Whether the compute form itself can hold the sum."""
        leaf = self.computed
        return leaf.dtype == "float32" and leaf.stride == contiguous_stride(leaf.shape)

    @property
    def _widens(self) -> bool:
        """Whether the base is of plain floats in pieces, which go to fp32 without a rounding."""
        return all(isinstance(step, Join) for step in self.base) and all(
            leaf.dtype in PLAIN_FLOATS for leaf in self.stored
        )

    def _runs(
        self,
        stored: Sequence[torch.Tensor],
        out: torch.Tensor,
        kept: list[torch.Tensor],
        passing: torch.Tensor,
    ) -> Iterator[Run]:
        total = out if self._sums_in_place else kept.pop(0)
        delta = kept[0] if kept else total
        base, at = stored[: len(self.stored)], len(self.stored)
        if not self._first_in_place:
            yield from self._whole(base, total, out, passing)
        for number, part in enumerate(self.merged):
            own = stored[at : at + part.takes]
            at += part.takes
            work = carve(passing, _fp32(part.addition.work))
            in_place = self._first_in_place and not number
            target = total if in_place else delta
            yield part.addition.prepare(own[: part.addition.takes], target, work)
            if in_place:
                yield _adding(total, base[0])
            elif part.magnitude:
                whole = None if not number else partial(self._whole, base, out=out)
                yield from self._rescaled(whole, own[-1], total, delta, passing)
            else:
                yield _adding(total, delta)
        if total is not out:
            yield partial(copy, out, total)

    def _whole(
        self,
        stored: Sequence[torch.Tensor],
        target: torch.Tensor,
        out: torch.Tensor,
        scratch: torch.Tensor,
    ) -> Iterator[Run]:
        """The weight in fp32, in `target`; a packed one becomes what computes first, in `out`."""
        decoded = target if self._sums_in_place or self._widens else out
        at = 0
        for step in self.base:
            own = stored[at : at + step.takes]
            at += step.takes
            yield step.prepare(own, decoded, scratch.narrow(0, 0, step.scratch_bytes))
        source = decoded if self.base else stored[0]
        if source is not target:
            yield partial(copy, target, source)

    def _rescaled(
        self,
        whole: Callable[..., Iterator[Run]] | None,
        magnitude: torch.Tensor,
        total: torch.Tensor,
        delta: torch.Tensor,
        passing: torch.Tensor,
    ) -> Iterator[Run]:
        """DoRA: `(magnitude / norm) * (total + delta)`, row by row.

        The norm is that of the stored weight with `delta`: `whole` makes that weight anew where
        others were added to the total before.
        """
        rows = tuple(total.shape[:1])
        wide, norm = carve(passing, _fp32((rows, rows)))
        measured = total
        if whole is not None:
            at, room = self._norm_bytes, _room(tuple(total.shape))
            (measured,) = carve(passing.narrow(0, at, room), _fp32([tuple(total.shape)]))
            left = passing.narrow(0, at + room, self._measured_bytes - room)
            yield from whole(target=measured, scratch=left)
            yield _adding(measured, delta)
        yield _adding(total, delta)
        source = magnitude.view(rows)

        def rescale() -> None:
            wide.copy_(source)
            torch.linalg.vector_norm(measured, dim=1, out=norm)  # `norm` would make an array
            torch.div(wide, norm, out=norm)
            total.mul_(norm[:, None])

        yield rescale


def _adding(target: torch.Tensor, addend: torch.Tensor) -> Run:
    def run() -> None:
        target.add_(addend)

    return run


def _fp32(shapes: Iterable[Shape]) -> Arrays:
    return [("float32", shape) for shape in shapes]


def _room(shape: Shape) -> int:
    """Bytes of scratch that an fp32 array takes."""
    return scratch_bytes(_fp32([shape]))
