"""The bound of a disk: the bytes of all blocks, read with O_DIRECT and nothing else done.

Whoever computes with weights has to keep them until then, so the bound keeps them, too: it reads
round a memory that no cache holds. Reads into a buffer that stays in a processor's cache can be a
third faster (it depends on the machine), but what they bring is gone with the next one. That is
measured beside the bound, to show by how much, and held against nobody.
"""

import itertools
import mmap
import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from blockswap.layout.checkpoint import open_checkpoint
from blockswap.store.file_slab import SECTOR

CHUNK = 32 * 1024 * 1024
KEPT = 1024 * 1024 * 1024
DISCARDED = 8 * 1024 * 1024

Span = tuple[int, int]  # offset and size in the file, in whole sectors


def block_spans(checkpoint: Path, chunk: int = CHUNK) -> list[Span]:
    """Where the blocks lie, joined and widened to sectors, in reads of at most `chunk` bytes."""
    tensors = open_checkpoint(checkpoint).tensors
    leaves = sorted((t.offset, t.nbytes) for name, t in tensors.items() if "blocks." in name)
    return list(_chunks(_joined(leaves), chunk))


def _joined(leaves: Iterable[Span]) -> Iterable[Span]:
    start = end = -1
    for offset, nbytes in leaves:
        first, last = offset // SECTOR * SECTOR, -(-(offset + nbytes) // SECTOR) * SECTOR
        if first > end:
            if end > start:
                yield start, end - start
            start = first
        end = max(end, last)
    if end > start:
        yield start, end - start


def _chunks(spans: Iterable[Span], chunk: int) -> Iterable[Span]:
    for offset, nbytes in spans:
        for at in range(0, nbytes, chunk):
            yield offset + at, min(chunk, nbytes - at)


class Reader:
    """Reads all blocks, as a bound for whoever has to. Owns its memory, in huge pages."""

    def __init__(self, checkpoint: Path, kept_bytes: int = KEPT) -> None:
        """`kept_bytes`: the memory that is read round, a multiple of `CHUNK`."""
        self._kept = block_spans(checkpoint)
        self._discarded = block_spans(checkpoint, DISCARDED)
        self.nbytes = sum(nbytes for _, nbytes in self._kept)
        self._size = checkpoint.stat().st_size
        self._file = os.open(checkpoint, os.O_RDONLY | os.O_DIRECT)
        memory = memoryview(_memory(kept_bytes))
        self._ring = [memory[at : at + CHUNK] for at in range(0, kept_bytes, CHUNK)]
        self._next = 0  # where in the ring to go on: each time elsewhere

    def seconds(self, threads: int) -> float:
        """Time to read everything once, `threads` reads at a time; raises a thread's first error.

        No read goes where one of the last few went.
        """
        assert threads < len(self._ring)
        ring = self._ring[self._next :] + self._ring[: self._next]
        self._next = (self._next + len(self._kept)) % len(self._ring)
        return self._read(self._kept, ring, threads)

    def discarding_seconds(self) -> float:
        """Time to read everything once, each part over the one before."""
        return self._read(self._discarded, [self._ring[0][:DISCARDED]], 1)

    def _read(self, spans: Sequence[Span], ring: Sequence[memoryview], threads: int) -> float:
        targets = zip(spans, itertools.cycle(ring), strict=False)
        left = list(targets)[::-1]  # popping from a list is a single step
        failed: list[Exception] = []

        def work() -> None:
            while left and not failed:
                try:
                    (offset, nbytes), target = left.pop()
                except IndexError:
                    return
                try:
                    count = os.preadv(self._file, [target[:nbytes]], offset)
                    if count < min(nbytes, self._size - offset):
                        raise EOFError(f"{count} of {nbytes} bytes came from byte {offset}")
                except (OSError, EOFError) as error:
                    failed.append(error)

        began = time.perf_counter()
        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        took = time.perf_counter() - began
        if failed:
            raise failed[0]
        return took


def _memory(nbytes: int) -> mmap.mmap:
    """In huge pages: a read into small ones takes a good part longer. All of it is there."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    for page in range(0, nbytes, mmap.PAGESIZE):
        memory[page] = 0
    return memory
