"""musubi-tuner: a block that is done changes places with one that comes, each way, in a thread.

Read: kohya-ss/musubi-tuner at 0382db2, `src/musubi_tuner/modules/custom_offloading_utils.py`
(`ModelOffloader`, forward only, as Wan inference uses it). After block k the one worker thread
synchronises the compute stream, copies k's weights out and those of the block that is as many
places ahead as fit on the device into the same memory, both on one stream; the forward waits for
that thread and then for its event before the block runs. Weights go back although they have not
changed, and with n blocks on the device every block of the model travels both ways in each
forward, not only those that do not fit.

With pinned memory the copies are asynchronous. Without (the default) they pass through two pinned
staging buffers, and the thread copies between those and pageable memory itself.

The worker's synchronisation covers whatever compute was enqueued by then, which is a race in
real time; here it is the block that was just done, which is the best it can get.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

import simaccel as sim
from benchmarks.schedule.how.model import ClockedModel
from benchmarks.schedule.how.peers.weights import hang, hang_on_device, hang_pinned, tensors_of
from benchmarks.schedule.what import Case, Rates

# (weights on the device, host weights of the block that comes) -> host weights of the one that goes
Exchange = Callable[[list[torch.Tensor], list[torch.Tensor]], list[torch.Tensor]]


class _Musubi:
    """The forward and the worker thread; how weights are exchanged is the subclass's matter."""

    pinned: bool

    def __init__(self, model: ClockedModel, case: Case, rates: Rates) -> None:
        self._blocks = list(model.blocks)
        self._rates = rates
        # Two blocks have to be on the device: one computes while the other changes places.
        self._on_device = max(2, case.residents)
        for block in self._blocks[: self._on_device]:
            hang_on_device(block)
        self._host = {
            number: hang_pinned(block) if self.pinned else tensors_of(block)
            for number, block in enumerate(self._blocks)
            if number >= self._on_device
        }
        self._stream = torch.Stream("sim")
        weights = tensors_of(self._blocks[0])
        self._staging = [
            [torch.empty_like(w, device="cpu").pin_memory() for w in weights] for _ in "ab"
        ]
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._moved: dict[int, tuple[torch.Event, float]] = {}

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        for number, block in enumerate(self._blocks):
            self._wait_for(number)
            hidden = block(hidden)
            self._submit(number, (number + self._on_device) % len(self._blocks))
        return hidden

    def close(self) -> None:
        self._worker.shutdown()

    def _wait_for(self, number: int) -> None:
        if number in self._moved:
            event, worker_done = self._moved.pop(number)
            sim.clock.join(worker_done)  # the future's result
            torch.accelerator.current_stream().wait_event(event)

    def _submit(self, goes: int, comes: int) -> None:
        asked = sim.clock.mark()
        # In real time the thread runs here and now, so that the figures are the same every time;
        # the virtual clocks of both threads say who waits for whom.
        self._moved[comes] = self._worker.submit(self._move, goes, comes, asked).result()

    def _move(self, goes: int, comes: int, asked: float) -> tuple[torch.Event, float]:
        sim.clock.join(asked)
        torch.accelerator.current_stream().synchronize()
        device = tensors_of(self._blocks[goes])
        with self._stream:
            home = self._exchange(device, self._host.pop(comes))
            done = torch.Event("sim")
            done.record(self._stream)
        hang(self._blocks[goes], home)
        self._host[goes] = home
        hang(self._blocks[comes], device)
        return done, sim.clock.mark()

    def _exchange(
        self, device: list[torch.Tensor], comes: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        raise NotImplementedError


class MusubiPinned(_Musubi):
    """`use_pinned_memory=True`: all out, then all in, on one stream."""

    pinned = True

    def _exchange(
        self, device: list[torch.Tensor], comes: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        spare = self._staging[0]
        for target, source in zip(spare, device, strict=True):
            target.copy_(source, non_blocking=True)
        for target, source in zip(device, comes, strict=True):
            target.copy_(source, non_blocking=True)
        self._staging[0] = comes  # its memory is the spare of the next exchange
        return spare


class MusubiStaged(_Musubi):
    """The default: tensor by tensor through two staging buffers, with host copies."""

    pinned = False

    def _exchange(
        self, device: list[torch.Tensor], comes: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        from_device, to_device = self._staging
        entered: torch.Event | None = None
        for weight, host, out, into in zip(device, comes, from_device, to_device, strict=True):
            out.copy_(weight, non_blocking=True)
            left = self._stream.record_event()
            if entered is not None:
                entered.synchronize()
            self._host_copy(into, host)
            left.synchronize()
            weight.copy_(into, non_blocking=True)
            entered = self._stream.record_event()
            self._host_copy(host, out)
        return comes  # the memory of the block that came now holds the one that went

    def _host_copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)
        sim.advance_host(source.numel() * source.element_size() / (self._rates.host * 1e9))
