"""A unit's decoding: which leaves have steps, and where each lies in the decode buffer.

decode buffer   |leaf 0      |leaf 3   |leaf 7      |scratch  |
                compute forms, each as in a slab     one for all steps, which run in turn
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..layout.dtypes import PLAIN_FLOATS
from ..layout.slab import pack
from ..layout.values import Leaf, contiguous_stride
from .merge import Merge, Merged
from .steps import Cast, Cost, Join, Step


@dataclass(frozen=True, slots=True)
class LeafForm:
    """The stored form of one leaf and the steps to its compute form; no steps: they are the same.

    `stored` holds the arrays of all steps, in the order of the steps; today there is one at most.
    """

    stored: tuple[Leaf, ...]
    computed: Leaf
    steps: tuple[Step, ...] = ()

    @property
    def stored_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.stored)

    @property
    def merges(self) -> bool:
        """Whether adapters are merged on the way, which is done where the weight computes."""
        return any(isinstance(step, Merge) for step in self.steps)

    def merged_with(self, merged: Sequence[Merged], stored: Sequence[Leaf]) -> "LeafForm":
        """The form with adapters merged in, whose own arrays are `stored`, in order.

        Plain floats, also in several pieces, are widened to fp32 as they are stored; what is packed
        is decoded first, as it is without adapters. Either is rounded to its compute dtype at the
        end.
        """
        plain = self.stored[0].dtype in PLAIN_FLOATS and all(
            isinstance(s, Cast) for s in self.steps
        )
        base = () if plain else self.steps
        step = Merge(self.stored, base, self.computed, tuple(merged))
        return LeafForm((*self.stored, *stored), self.computed, (step,))


def plain_form(stored: Leaf, computed: Leaf) -> LeafForm:
    """The form of a leaf whose stored dtype may differ from the one it computes in."""
    steps = () if stored.dtype == computed.dtype else (Cast(stored, computed),)
    return LeafForm((stored,), computed, steps)


def joined_form(stored: Sequence[Leaf], computed: Leaf) -> LeafForm:
    """The form of a leaf that rests in the file as several pieces, in order.

    So rest rows that a library's converter puts together, or swaps.
    """
    return LeafForm(tuple(stored), computed, (Join(tuple(stored), computed),))


def decoded_once(
    form: LeafForm, stored: Sequence[torch.Tensor], device: torch.device
) -> torch.Tensor:
    """The compute form for a unit that stays: as `decoded_on_host`, but where LoRAs are merged.

    That is done by `device` here, too, so that what a weight becomes does not depend on where its
    unit rests.
    """
    if not form.merges:
        return decoded_on_host(form, stored)
    return _decoded(form, [array.to(device) for array in stored], device)


def decoded_on_host(form: LeafForm, stored: Sequence[torch.Tensor]) -> torch.Tensor:
    """The compute form in memory of its own, once; what is only cast is left to whoever copies."""
    if all(isinstance(step, Cast) for step in form.steps):
        return stored[0]
    return _decoded(form, stored, torch.device("cpu"))


def _decoded(form: LeafForm, stored: Sequence[torch.Tensor], where: torch.device) -> torch.Tensor:
    leaf, decoding = form.computed, UnitDecoding((form,))
    dtype = getattr(torch, leaf.dtype)
    out = torch.empty_strided(leaf.shape, leaf.stride, dtype=dtype, device=where)
    scratch = torch.empty(decoding.scratch_bytes, dtype=torch.uint8, device=where)
    for run in decoding.prepare(stored, [out], scratch):
        run()
    return out


def stored_leaf(dtype: str, shape: tuple[int, ...]) -> Leaf:
    """An array as a file holds it."""
    return Leaf((), dtype, shape, contiguous_stride(shape))


@dataclass(frozen=True, slots=True)
class UnitDecoding:
    """The forms of a unit's leaves, in leaf order."""

    forms: tuple[LeafForm, ...]

    @property
    def stored(self) -> tuple[Leaf, ...]:
        """All stored arrays of the unit, in order: what its slab holds."""
        return tuple(leaf for form in self.forms for leaf in form.stored)

    @property
    def decoded(self) -> tuple[LeafForm, ...]:
        return tuple(form for form in self.forms if form.steps)

    @property
    def rests_stored(self) -> bool:
        """Whether the unit is smaller as it is stored: then that is what rests in RAM and moves.

        So does a unit with adapters: they are merged by the device, wherever the unit rests.
        """
        if any(form.merges for form in self.forms):
            return True
        computed = sum(form.computed.nbytes for form in self.forms)
        return sum(form.stored_bytes for form in self.forms) < computed

    @property
    def scratch_bytes(self) -> int:
        steps = (step for form in self.forms for step in form.steps)
        return max((step.scratch_bytes for step in steps), default=0)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the decode buffer that the unit needs; 0 where nothing is decoded."""
        return pack([form.computed for form in self.decoded]).nbytes + self.scratch_bytes

    @property
    def cost(self) -> Cost:
        """What one visit's decoding asks of the device."""
        return sum((step.cost for form in self.forms for step in form.steps), Cost())

    def prepare(
        self, stored: Sequence[torch.Tensor], out: Sequence[torch.Tensor], scratch: torch.Tensor
    ) -> list[Callable[[], None]]:
        """What decodes the unit from `stored` (all its stored arrays) into `out`, in order.

        `out` are the compute forms of `decoded`, `scratch` uint8 of `scratch_bytes` or more.
        """
        runs: list[Callable[[], None]] = []
        at, targets = 0, iter(out)
        for form in self.forms:
            if not form.steps:
                at += len(form.stored)
                continue
            target = next(targets)
            for step in form.steps:
                own = stored[at : at + step.takes]
                runs.append(step.prepare(own, target, scratch.narrow(0, 0, step.scratch_bytes)))
                at += step.takes
        return runs
