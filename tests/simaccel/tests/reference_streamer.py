"""A streamer as small as it can be: file -> staging -> slot -> compute, every wait removable.

    reader thread                forward thread, copy stream      forward thread, compute stream
    -------------                ---------------------------      ------------------------------
    wait "drained" of buffer
    read block k into buffer --> wait "free" of slot
                                 copy buffer -> slot
                                 record "drained", "ready" -----> wait "ready"
                                                                  forward with the slot
                                                                  record "free"

`without` names the waits to leave out, for tests that want them missed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Collection, Sequence

import torch

import simaccel as sim

WAITS = ("allocated", "drained", "read", "free", "ready")


class ReferenceStreamer:
    """Runs `blocks` (host vectors, "the file") over a ring of slots, `ahead` blocks in advance."""

    def __init__(
        self,
        blocks: Sequence[torch.Tensor],
        *,
        slots: int = 2,
        compute_seconds: float = 0.0,
        without: Collection[str] = (),
    ):
        assert set(without) <= set(WAITS)
        self.blocks = blocks
        self.compute_seconds = compute_seconds
        self.without = without
        self.copies = torch.Stream("sim")
        self.staging = [torch.empty_like(blocks[0], pin_memory=True) for _ in range(slots)]
        self.slots = [torch.empty_like(blocks[0], device="sim") for _ in range(slots)]
        self.drained = [torch.Event("sim") for _ in range(slots)]
        self.ready = [torch.Event("sim") for _ in range(slots)]
        self.free = [torch.Event("sim") for _ in range(slots)]
        self._name_everything()
        if "allocated" not in without:
            # Slots may lie in memory that the compute stream used a moment ago.
            self.copies.wait_stream(torch.accelerator.current_stream())

    def _name_everything(self) -> None:
        sim.label(self.copies, "copies")
        for index, (buffer, slot) in enumerate(zip(self.staging, self.slots, strict=True)):
            sim.label(buffer, f"staging {index}")
            sim.label(slot, f"slot {index}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x -> (x + block) for every block, one after the other."""
        requests: queue.Queue[int | None] = queue.Queue()
        results: queue.Queue[float | BaseException] = queue.Queue()
        # The thread starts at the forward thread's time.
        began = sim.clock.mark()
        reader = threading.Thread(target=self._read_blocks, args=(requests, results, began))
        reader.start()
        try:
            ahead = len(self.slots)
            for block in range(min(ahead, len(self.blocks))):
                self._fetch(block, requests, results)
            for block in range(len(self.blocks)):
                x = self._run(block, x)
                if block + ahead < len(self.blocks):
                    self._fetch(block + ahead, requests, results)
        finally:
            requests.put(None)
            reader.join()
        return x

    def _read_blocks(self, requests: queue.Queue, results: queue.Queue, began: float) -> None:
        sim.clock.join(began)
        try:
            while (block := requests.get()) is not None:
                results.put(self._read(block))
        except RuntimeError as error:
            results.put(error)

    def _read(self, block: int) -> float:
        index = block % len(self.slots)
        # Hazard: the last copy out of this buffer may still be reading it.
        if block >= len(self.slots) and "drained" not in self.without:
            self.drained[index].synchronize()
        buffer = self.staging[index]
        sim.disk_read(buffer.nbytes)
        sim.host_write(buffer, f"read of block {block}")
        buffer.numpy()[:] = self.blocks[block].numpy()
        return sim.clock.mark()

    def _fetch(self, block: int, requests: queue.Queue, results: queue.Queue) -> None:
        index = block % len(self.slots)
        if "read" in self.without:
            self._copy(block, index)
        requests.put(block)
        result = results.get()
        if isinstance(result, BaseException):
            raise result
        sim.clock.join(result)
        if "read" not in self.without:
            self._copy(block, index)

    def _copy(self, block: int, index: int) -> None:
        # Hazard: the forward that used this slot last may still be reading it.
        if block >= len(self.slots) and "free" not in self.without:
            self.copies.wait_event(self.free[index])
        with self.copies:
            self.slots[index].copy_(self.staging[index], non_blocking=True)
        self.drained[index].record(self.copies)
        self.ready[index].record(self.copies)

    def _run(self, block: int, x: torch.Tensor) -> torch.Tensor:
        index = block % len(self.slots)
        compute = torch.accelerator.current_stream()
        # Hazard: the copy into this slot may not be done.
        if "ready" not in self.without:
            compute.wait_event(self.ready[index])
        x = x + self.slots[index]
        sim.compute(self.compute_seconds, reads=[self.slots[index]], name=f"block {block}")
        self.free[index].record(compute)
        return x
