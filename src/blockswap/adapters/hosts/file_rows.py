"""Which bytes of a checkpoint a tensor is, followed through any library's own loading code.

A `FileRows` looks like a CPU tensor and has no data: it knows which stored elements, one behind
the other, it stands for. Views, splits and joins of whole rows, and casts hand that on; any
other operation gives one that says by what it was computed. So a library's loader or converter
runs as it is, on names and ranges, and what comes out says where in the file each weight lies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from ...errors import GeometryError
from ...layout.checkpoint import StoredTensor
from ...store.leaves import torch_dtype

MOST_PARTS = 512  # of a tensor (experts, say) that is joined or cut in each of its parts
_AS_THEY_ARE = frozenset(
    {
        "detach", "alias", "clone", "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze",
        "contiguous", "lift_fresh", "lift_fresh_copy", "_reshape_alias", "_to_copy", "unflatten",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """`count` elements of a stored tensor, from element `start` on, in row-major order."""

    tensor: StoredTensor
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Origin:
    """What a tensor is made of: the elements of `runs`, in order, or a result of `computed_by`."""

    runs: tuple[Run, ...] = ()
    computed_by: str = ""

    def part(self, start: int, count: int) -> "Origin":
        """The origin of `count` elements from `start` on."""
        if self.computed_by:
            return self
        runs, at = [], 0
        for run in self.runs:
            low, high = max(start, at), min(start + count, at + run.count)
            if low < high:
                runs.append(Run(run.tensor, run.start + low - at, high - low))
            at += run.count
        return Origin(tuple(runs))


class FileRows(torch.Tensor):
    """Stands for elements of a checkpoint; see above. Reading its values is an error."""

    blockswap_origin: Origin

    @staticmethod
    def __new__(cls, shape: Sequence[int], dtype: torch.dtype, origin: Origin) -> "FileRows":
        made: FileRows = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=dtype, device=torch.device("cpu"), requires_grad=False
        )
        made.blockswap_origin = origin
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"FileRows({list(self.shape)}, {self.dtype})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _follow(func, args, dict(kwargs or {}))


def rows_of(tensor: StoredTensor) -> FileRows:
    """A whole stored tensor."""
    whole = Origin((Run(tensor, 0, prod(tensor.shape)),))
    return FileRows(tensor.shape, torch_dtype(tensor.dtype), whole)


def _follow(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = func._overloadpacket.__name__
    if name in ("_local_scalar_dense", "equal"):
        raise _no_range("reads values of the file")
    if func._schema.is_mutable:  # the write would be lost: the tensor would still say the file's
        raise _no_range(f"writes into tensors in place ({name})")
    on_meta = {key: _meta(value) for key, value in kwargs.items()}
    if on_meta.get("device") is not None:
        on_meta["device"] = torch.device("meta")
    shaped = func(*(_meta(arg) for arg in args), **on_meta)
    if isinstance(shaped, (list, tuple)):
        at, several = 0, []
        for number, piece in enumerate(shaped):
            several.append(_made(piece, _piece(name, args, kwargs, piece, (number, at))))
            at += piece.shape[_axis(args, 2, kwargs)] if name.startswith("split") else 1
        return several
    if not isinstance(shaped, torch.Tensor):
        return shaped
    return _made(shaped, _origin(name, args, kwargs, shaped))


def _no_range(what: str) -> GeometryError:
    return GeometryError(
        f"the library's converter {what}, and streamed weights are ranges of the file as it is: "
        "save the model once with save_pretrained and open that folder"
    )


def _made(shaped: torch.Tensor, origin: Origin) -> FileRows:
    return FileRows(shaped.shape, shaped.dtype, origin)


def _meta(value: Any) -> Any:
    if isinstance(value, FileRows):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    return [_meta(item) for item in value] if isinstance(value, (list, tuple)) else value


def _axis(args: Sequence[Any], position: int, kwargs: Mapping[str, Any]) -> int:
    axis = kwargs.get("dim", args[position] if len(args) > position else 0)
    return int(axis)


def _origin(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], shaped: torch.Tensor
) -> Origin:
    source = args[0]
    if name in ("cat", "stack"):
        return _joined(name, source, _axis(args, 1, kwargs))
    if not isinstance(source, FileRows):
        return Origin(computed_by=name)
    origin = source.blockswap_origin
    if name == "_to_copy":
        return _cast(origin, source.dtype, shaped.dtype)
    if name in ("slice", "select", "narrow"):
        return _cut(name, source, args, kwargs, shaped)
    if shaped.dtype != source.dtype:
        return Origin(computed_by=f"{name} as {shaped.dtype}")
    turned = name in ("permute", "transpose", "t", "movedim", "expand")
    same = name in _AS_THEY_ARE or (turned and _same_order(source, shaped))
    return origin if same else Origin(computed_by=name)


def _same_order(source: torch.Tensor, shaped: torch.Tensor) -> bool:
    """Whether only axes of one element changed places."""
    return [n for n in source.shape if n != 1] == [n for n in shaped.shape if n != 1] and (
        sum(n != 1 for n in source.shape) <= 1
    )


def _cut(
    name: str,
    source: FileRows,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    shaped: torch.Tensor,
) -> Origin:
    axis = _axis(args, 1, kwargs) % source.dim()
    if prod(shaped.shape) == prod(source.shape):  # an axis of one element may go
        return source.blockswap_origin
    first = args[2] if len(args) > 2 else 0
    step = args[4] if name == "slice" and len(args) > 4 else 1
    if step != 1:
        return Origin(computed_by="a slice with steps")
    size = source.shape[axis]
    first = min(max((first or 0) + size * ((first or 0) < 0), 0), size)
    count = 1 if name == "select" else shaped.shape[axis]
    return _along(name, source, axis, first, count)


def _along(name: str, source: FileRows, axis: int, first: int, count: int) -> Origin:
    """`count` indices of an axis from `first` on: a range in each of the parts before that axis."""
    parts = prod(source.shape[:axis])
    if not _are_ranges(parts, source.shape[axis:]):
        return Origin(computed_by=f"{name} of columns")
    inner = prod(source.shape[axis + 1 :])
    whole, origin = source.shape[axis] * inner, source.blockswap_origin
    found = [origin.part(part * whole + first * inner, count * inner) for part in range(parts)]
    return Origin(tuple(_merged([run for one in found for run in one.runs])), origin.computed_by)


def _are_ranges(parts: int, below: Sequence[int]) -> bool:
    """Whether what lies below an axis are ranges worth a read: matrices, in not too many parts."""
    return parts == 1 or (parts <= MOST_PARTS and sum(size != 1 for size in below) > 1)


def _piece(
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    piece: torch.Tensor,
    place: tuple[int, int],
) -> Origin:
    """One of the tensors that an operation gave: number and first index along the axis."""
    source = args[0]
    if not isinstance(source, FileRows) or name not in ("split", "split_with_sizes", "unbind"):
        return Origin(computed_by=name)
    axis = _axis(args, 1 if name == "unbind" else 2, kwargs) % source.dim()
    return _along(name, source, axis, place[1], 1 if name == "unbind" else piece.shape[axis])


def _joined(name: str, sources: Sequence[torch.Tensor], axis: int) -> Origin:
    rows: list[FileRows] = []
    for source in sources:
        if not isinstance(source, FileRows):
            return Origin(computed_by=f"{name} with values of its own")
        if source.blockswap_origin.computed_by:
            return source.blockswap_origin
        if source.dtype != sources[0].dtype:
            return Origin(computed_by=f"{name} of several dtypes")
        rows.append(source)
    axis %= rows[0].dim() + (name == "stack")
    parts = prod(rows[0].shape[:axis])
    if not all(_are_ranges(parts, source.shape[axis:]) for source in rows):
        return Origin(computed_by=f"{name} of columns")
    runs: list[Run] = []
    for part in range(parts):
        for source in rows:
            size = prod(source.shape[axis:])
            runs += source.blockswap_origin.part(part * size, size).runs
    return Origin(tuple(_merged(runs)))


def _merged(runs: Sequence[Run]) -> list[Run]:
    merged: list[Run] = []
    for run in runs:
        last = merged[-1] if merged else None
        if last and last.tensor == run.tensor and last.start + last.count == run.start:
            merged[-1] = replace(last, count=last.count + run.count)
        else:
            merged.append(run)
    return merged


def _cast(origin: Origin, now: torch.dtype, then: torch.dtype) -> Origin:
    """A cast is done again from what is stored: the same bits only if none before it rounded."""
    for run in origin.runs:
        stored = torch_dtype(run.tensor.dtype)
        if now not in (then, stored) and torch.promote_types(stored, now) != now:
            return Origin(computed_by=f"a cast to {now} on the way")
    return origin
