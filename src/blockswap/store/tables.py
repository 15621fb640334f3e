"""Tables in host memory or in a file: how rows are read for a lookup; nothing read is kept."""

from collections.abc import Callable

import torch

from ..layout.dtypes import ITEM_BYTES
from ..layout.stamp import Stamped
from .file_io import StreamedFile
from .leaves import torch_dtype


class TableInMemory:
    """A table `[rows, width]` in host memory, of which rows are copied out."""

    def __init__(self, table: torch.Tensor) -> None:
        self._table = table.detach()

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """`rows` int64 `[n]`, ascending, within the table -> `[n, width]` in the dtype stored."""
        return self._table.index_select(0, rows)

    def whole(self) -> torch.Tensor:
        """The table itself."""
        return self._table

    def shown(self) -> torch.Tensor | None:
        """What `detach()` of the table in the model gives, and so `state_dict()`."""
        return self._table


class TableInFile:
    """A table in a checkpoint, of which rows are read; neighbours in one read. Owns its file."""

    def __init__(self, header: Stamped, dtype: str, shape: tuple[int, ...], offset: int) -> None:
        """`offset` in bytes from the first byte of the file. Raises ReadError."""
        self._count, self._width = shape
        self._dtype = torch_dtype(dtype)
        self._row_bytes = self._width * ITEM_BYTES[dtype]
        self._offset = offset
        self._file = StreamedFile(header)

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """As `TableInMemory.read`. Raises ReadError if the file was written to or cut."""
        found = bytearray()
        wanted = rows.tolist()
        for first, count in _runs(wanted):
            at, size = self._offset + first * self._row_bytes, count * self._row_bytes
            found += self._file.look(at, size)
        self._file.check_unchanged()  # also what was cut short, and then less came
        raw = (
            torch.frombuffer(found, dtype=torch.uint8)
            if found
            else torch.empty(0, dtype=torch.uint8, device="cpu")
        )
        return raw.view(self._dtype).view(len(wanted), self._width)

    def whole(self) -> torch.Tensor:
        """All rows."""
        return self.read(torch.arange(self._count, dtype=torch.int64, device="cpu"))

    def shown(self) -> torch.Tensor | None:
        """Nothing: the table is not in memory."""
        return None

    def close(self) -> None:
        """Gives the file back."""
        self._file.close()


class PackedTableInFile:
    """A table whose rows are packed one by one: their bytes are read, and decoded on the host."""

    def __init__(self, packed: TableInFile, decode: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """`packed` has a row of bytes for each row; `decode` makes rows of numbers of them."""
        self._packed, self._decode = packed, decode

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """As `TableInFile.read`, in the dtype that the table computes in."""
        return self._decode(self._packed.read(rows))

    def whole(self) -> torch.Tensor:
        """All rows."""
        return self._decode(self._packed.whole())

    def shown(self) -> torch.Tensor | None:
        """Nothing: the table is not in memory."""
        return None

    def close(self) -> None:
        """Gives the file back."""
        self._packed.close()


def _runs(rows: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, count) of neighbours."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs and sum(runs[-1]) == row:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((row, 1))
    return runs
