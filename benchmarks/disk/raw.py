"""The bound of a disk: the bytes of all blocks, read with O_DIRECT and nothing else done.

python -m benchmarks.disk.raw FOLDER      # told "THREADS" by lines on stdin, answers seconds
"""

import mmap
import os
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.disk.folder import Folder
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.store.file_slab import SECTOR

CHUNK = 8 * 1024 * 1024
THREADS = (1, 2, 4)

Span = tuple[int, int]  # offset and size in the file, in whole sectors


def block_spans(checkpoint: Path) -> list[Span]:
    """Where the blocks lie, joined and widened to sectors, in reads of at most `CHUNK` bytes."""
    tensors = open_checkpoint(checkpoint).tensors
    leaves = sorted((t.offset, t.nbytes) for name, t in tensors.items() if "blocks." in name)
    return list(_chunks(_joined(leaves)))


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


def _chunks(spans: Iterable[Span]) -> Iterable[Span]:
    for offset, nbytes in spans:
        for at in range(0, nbytes, CHUNK):
            yield offset + at, min(CHUNK, nbytes - at)


class Reader:
    """Reads all spans, several at a time, each thread into a buffer of its own."""

    def __init__(self, checkpoint: Path) -> None:
        self._spans = block_spans(checkpoint)
        self.nbytes = sum(nbytes for _, nbytes in self._spans)
        self._size = checkpoint.stat().st_size
        self._file = os.open(checkpoint, os.O_RDONLY | os.O_DIRECT)
        self._buffers = [memoryview(_memory()) for _ in range(max(THREADS))]

    def seconds(self, threads: int) -> float:
        """Time to read everything once. Raises the first error of a thread."""
        left = list(reversed(self._spans))  # popping from a list is a single step
        failed: list[Exception] = []

        def work(buffer: memoryview) -> None:
            while left and not failed:
                try:
                    offset, nbytes = left.pop()
                except IndexError:
                    return
                try:
                    count = os.preadv(self._file, [buffer[:nbytes]], offset)
                    if count < min(nbytes, self._size - offset):
                        raise EOFError(f"{count} of {nbytes} bytes came from byte {offset}")
                except (OSError, EOFError) as error:
                    failed.append(error)

        began = time.perf_counter()
        workers = [threading.Thread(target=work, args=(b,)) for b in self._buffers[:threads]]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        took = time.perf_counter() - began
        if failed:
            raise failed[0]
        return took


def _memory() -> mmap.mmap:
    """In huge pages: a read into small ones takes a good part longer."""
    memory = mmap.mmap(-1, 2 * CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def main(root: str) -> None:
    reader = Reader(Folder(Path(root)).checkpoint)
    print("opened", flush=True)
    for line in sys.stdin:
        print(reader.seconds(int(line)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
