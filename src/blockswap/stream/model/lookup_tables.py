"""A table that a model looks up in, and of which only the rows asked for come to the device.

It stands in the model as a parameter of the table's shape, dtype and device, without memory. A
lookup fetches the distinct rows of its indices, then looks up among these: the same bits, for a
lookup copies. Any other use of the table fetches it whole, which is right, slow, and counted. A
write would change what was fetched and nothing else, so it is refused, through a view, too.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import torch

from ...ambient import undisturbed
from ...errors import StateError


class RowSource(Protocol):
    """Where a table rests; what comes is in host memory and in the dtype stored."""

    def read(self, rows: torch.Tensor) -> torch.Tensor: ...

    def whole(self) -> torch.Tensor: ...

    def shown(self) -> torch.Tensor | None: ...


class Lookups:
    """One table's rows: where they rest, where they go, and how many went."""

    def __init__(
        self,
        label: str,
        source: RowSource,
        device: torch.device,
        note: Callable[[int, int], None],
    ) -> None:
        """`label` names the table; `note(rows, bytes)` is told of every fetch."""
        self._label = label
        self._source = source
        self._device = device
        self._note = note
        self.rows = 0
        self.fetched_bytes = 0
        self.whole_uses: list[str] = []

    def look_up(self, table: torch.Tensor, indices: torch.Tensor, *rest: Any) -> torch.Tensor:
        """`indices` of any shape -> `[..., width]`. Waits for the indices: the host reads them."""
        if indices.is_meta:
            empty = torch.empty(table.shape, dtype=table.dtype, device="meta")
            shaped: torch.Tensor = torch.ops.aten.embedding(empty, indices, *rest)
            return shaped
        with undisturbed():
            wanted, places = torch.unique(indices.to("cpu", torch.int64), return_inverse=True)
            if wanted.numel() and not 0 <= int(wanted[0]) <= int(wanted[-1]) < table.shape[0]:
                raise IndexError("index out of range in self")
            rows = self._fetched(self._source.read(wanted), table.dtype)
        # No padding index: it matters to gradients only, and the rows have other numbers here.
        # In the dtype that was given: torch refuses all but two, and so does a table by rows.
        places = places.to(indices.device, indices.dtype)
        found: torch.Tensor = torch.ops.aten.embedding(rows, places)
        return found

    def whole(self, table: torch.Tensor, use: str) -> torch.Tensor:
        """All of the table on the device, for what is no lookup."""
        self.whole_uses.append(use)
        with undisturbed():
            return self._fetched(self._source.whole(), table.dtype)

    def shown(self, table: torch.Tensor) -> torch.Tensor:
        """What `detach()` gives: the table in host memory, or one that is read by rows again."""
        seen = self._source.shown()
        return LookupTable(table.shape, table.dtype, table.device, self) if seen is None else seen

    def refuse(self, what: str) -> NoReturn:
        raise StateError(
            f"{self._label} was to be {what} while its rows are read where it rests, which that "
            "would not reach: close the swap, do it, then swap again"
        )

    def _fetched(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        self.rows += rows.shape[0]
        self.fetched_bytes += rows.nbytes
        self._note(rows.shape[0], rows.nbytes)
        return rows.to(self._device).to(dtype)


class _Stand(torch.Tensor):
    """What stands for a table, or for a part of it that was fetched: read as any, never written."""

    blockswap_lookups: Lookups

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @abstractmethod
    def fetched(self, use: str) -> torch.Tensor:
        """What it stands for, on the device, for the operation `use`."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.blockswap_lookups.refuse("written to")

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self.blockswap_lookups.refuse("copied")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self.blockswap_lookups.refuse("saved")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _run(func, args, kwargs or {})


class LookupTable(_Stand, torch.nn.Parameter):
    """Stands in a model for a table that is not there."""

    @staticmethod
    def __new__(
        cls, shape: Sequence[int], dtype: torch.dtype, device: torch.device, lookups: Lookups
    ) -> "LookupTable":
        made: LookupTable = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=dtype, device=device, requires_grad=False
        )
        made.blockswap_lookups = lookups
        return made

    def __init__(self, *_: Any) -> None:
        """Everything is said in `__new__`."""

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"LookupTable({list(self.shape)}, {self.dtype}, {self.device})"

    @property
    def data(self) -> torch.Tensor:
        """Another stand-in: `data += 1` is refused before it has changed what `detach()` shows."""
        return LookupTable(self.shape, self.dtype, self.device, self.blockswap_lookups)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        self.blockswap_lookups.refuse("given other data")

    def fetched(self, use: str) -> torch.Tensor:
        return self.blockswap_lookups.whole(self, use)


class _View(_Stand):
    """A view of what was fetched."""

    _seen: torch.Tensor

    @staticmethod
    def __new__(cls, seen: torch.Tensor, lookups: Lookups) -> "_View":
        made: _View = torch.Tensor._make_wrapper_subclass(
            cls,
            seen.shape,
            strides=seen.stride(),
            storage_offset=seen.storage_offset(),
            dtype=seen.dtype,
            device=seen.device,
        )
        made._seen, made.blockswap_lookups = seen, lookups
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self._seen)

    def fetched(self, use: str) -> torch.Tensor:
        return self._seen

    def tolist(self) -> Any:
        return self._seen.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        return self._seen.clone().numpy(force=force)


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    name = func._overloadpacket.__name__
    first = args[0] if args else None
    if isinstance(first, LookupTable):
        if name == "embedding":
            return first.blockswap_lookups.look_up(*args)
        if name in ("detach", "alias"):
            return first.blockswap_lookups.shown(first)
    _refuse_writes(func, args, kwargs)

    def fetched(value: Any) -> Any:
        if isinstance(value, _Stand):
            return value.fetched(name)
        return [fetched(v) for v in value] if isinstance(value, (list, tuple)) else value

    given = {key: fetched(value) for key, value in kwargs.items()}
    found = func(*map(fetched, args), **given)
    looks = any(value.alias_info is not None for value in func._schema.returns)
    return (
        _as_views(found, first.blockswap_lookups) if looks and isinstance(first, _Stand) else found
    )


def _refuse_writes(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[number] if number < len(args) else kwargs.get(argument.name)
        for target in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(target, _Stand):
                target.blockswap_lookups.refuse("written to")


def _as_views(found: Any, lookups: Lookups) -> Any:
    if isinstance(found, torch.Tensor):
        return _View(found, lookups)
    return [_as_views(one, lookups) for one in found]
