"""Eight bits: this module owns writing weights as scaled fp8, and how much they lose by that.

Matrices of the blocks become float8_e4m3fn with one fp32 scale each (`<layer>.scale_weight`), and
a mark says so of the file (`scaled_fp8`): the spelling that ComfyUI reads. All else is cast to
bfloat16, but for what official pipelines keep precise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch

from ..layout.checkpoint import Checkpoint, StoredTensor
from ..layout.geometry import unit_of
from ..layout.header import FileTensor
from .weights import SourceTensor, flat_bytes, new_name, source_tensors

FP8_SCALED = "fp8_scaled"
BESIDE = "bfloat16"  # what is not quantised is cast to
_MOST = 448.0  # the largest number of float8_e4m3fn


@dataclass(frozen=True, slots=True)
class Eighth:
    """A tensor of the new file that is made of a weight: its numbers, its scale, or the mark."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    part: Literal["numbers", "scale", "mark"]
    weight: FileTensor | StoredTensor | None = None


def is_quantised_to(tensor: SourceTensor, key: str) -> bool:
    """Whether the tensor, of this key, is one of those that become fp8."""
    unit = unit_of(key)
    matrix = len(tensor.shape) == 2 and key.endswith(".weight") and "norm" not in key
    return matrix and unit is not None and unit.kind in ("block", "vace")


def eighths(name: str, tensor: FileTensor | StoredTensor) -> tuple[Eighth, Eighth]:
    """What stands in the new file for a weight called `name` there."""
    scale = f"{name.removesuffix('weight')}scale_weight"
    return (
        Eighth(name, "float8_e4m3fn", tensor.shape, "numbers", tensor),
        Eighth(scale, "float32", (), "scale", tensor),
    )


def mark(checkpoint: Checkpoint) -> Eighth:
    return Eighth(f"{checkpoint.prefix}scaled_fp8", "float8_e4m3fn", (0,), "mark")


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor of the new file: its name there, its key (None: no part of the transformer), and
    what it is made of (shard, tensor)."""

    name: str
    key: str | None
    source: tuple[int, SourceTensor | Eighth]


def new_tensors(checkpoint: Checkpoint, *, eight_bits: bool) -> Iterator[NewTensor]:
    """What the new file consists of, in the order of the source's files; the mark comes last."""
    for key, where in source_tensors(checkpoint):
        name, (shard, tensor) = new_name(checkpoint, key, where), where
        if eight_bits and key is not None and is_quantised_to(tensor, key):
            for made in eighths(name, tensor):
                yield NewTensor(made.name, key, (shard, made))
        else:
            yield NewTensor(name, key, where)
    if eight_bits:
        sign = mark(checkpoint)
        yield NewTensor(sign.name, None, (0, sign))


@dataclass(slots=True)
class Quantiser:
    """Quantises weights, one at a time, and sums up what each lost."""

    lost: dict[str, tuple[float, float]] = field(default_factory=dict)  # squares: error, weight

    def run(self, name: str, weight: torch.Tensor) -> tuple[memoryview, memoryview]:
        """Bytes of a weight's numbers and of its scale. `weight` is fp32 and is overwritten."""
        most = weight.abs().max()
        scale = torch.where(most > 0, most / _MOST, torch.ones_like(most))
        squares = float(weight.square().sum(dtype=torch.float64))
        numbers = (weight * (1.0 / scale)).clamp_(-_MOST, _MOST).to(torch.float8_e4m3fn)
        weight.sub_(numbers.to(torch.float32).mul_(scale))
        self.lost[name] = float(weight.square_().sum(dtype=torch.float64)), squares
        return flat_bytes(numbers), flat_bytes(scale.reshape(1))

    def sentences(self) -> Iterator[str]:
        """What was lost, in a sentence."""
        if not self.lost:
            return
        error, squares = (sum(pair[at] for pair in self.lost.values()) for at in (0, 1))
        shares = {n: (e / s) ** 0.5 for n, (e, s) in self.lost.items() if s}
        if not shares:
            return
        worst = max(shares, key=shares.__getitem__)
        yield (
            f"{len(self.lost)} weights are scaled fp8 now, with an error of "
            f"{(error / squares) ** 0.5:.2%} of them (root mean square), at most "
            f"{shares[worst]:.2%} ({worst})"
        )
