"""A table that a model looks up in, and of which only the rows asked for come to the device.

It stands in the model as a parameter of the table's shape, dtype and device, without memory. A
lookup fetches the distinct rows of its indices, then looks up among these: the same bits, for a
lookup copies. Any other use of the table fetches it whole, which is right, slow, and counted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from ...ambient import undisturbed


class RowSource(Protocol):
    """Where a table rests; what comes is in host memory and in the dtype stored."""

    def read(self, rows: torch.Tensor) -> torch.Tensor: ...

    def whole(self) -> torch.Tensor: ...

    def shown(self) -> torch.Tensor | None: ...


class Lookups:
    """One table's rows: where they rest, where they go, and how many went."""

    def __init__(
        self, source: RowSource, device: torch.device, note: Callable[[int, int], None]
    ) -> None:
        """`note(rows, bytes)` is told of every fetch."""
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
        found: torch.Tensor = torch.ops.aten.embedding(rows, places.to(indices.device))
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

    def _fetched(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        self.rows += rows.shape[0]
        self.fetched_bytes += rows.nbytes
        self._note(rows.shape[0], rows.nbytes)
        return rows.to(self._device).to(dtype)


class LookupTable(torch.nn.Parameter):
    """Stands in a model for a table that is not there."""

    blockswap_lookups: Lookups

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

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func._overloadpacket.__name__
        if name == "embedding" and isinstance(args[0], LookupTable):
            return args[0].blockswap_lookups.look_up(*args)
        if name in ("detach", "alias") and isinstance(args[0], LookupTable):
            return args[0].blockswap_lookups.shown(args[0])

        def whole(value: Any) -> Any:
            if isinstance(value, LookupTable):
                return value.blockswap_lookups.whole(value, name)
            return [whole(v) for v in value] if isinstance(value, (list, tuple)) else value

        return func(*map(whole, args), **{key: whole(v) for key, v in (kwargs or {}).items()})
