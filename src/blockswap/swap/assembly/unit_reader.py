"""Reading whole units of a checkpoint once, at opening: residents, the rest, and the RAM tier."""

from collections.abc import Sequence

import torch

from ...adapters.live import LiveTensor
from ...adapters.stored import StoredModel, extent_of
from ...decode.unit_decoding import decoded_once, stored_leaf
from ...layout.stamp import Stamped
from ...ranks.host_contents import sum_of
from ...ranks.reading import ReadAlone, Reading
from ...store.disk import DiskStore, DiskUnit
from ...store.landing import Landing
from ...store.leaves import view_leaf
from ...store.readers import STUCK_SECONDS, Job, ReaderPool
from ...stream.device import Device


class Loader:
    """Reads tensors of a checkpoint into scratch memory with the pool's readers."""

    def __init__(
        self,
        model: StoredModel,
        headers: Sequence[Stamped],
        readers: ReaderPool,
        device: Device,
        reading: Reading | None = None,
    ) -> None:
        """`device`: where LoRAs are merged into what is read. `reading`: with which ranks."""
        self.reading = reading or ReadAlone(device)
        self._device = device.torch_device
        self._model = model
        self._headers = headers
        self._readers = readers
        # Of what was read for this host, where others are to have the same.
        self.sums: dict[str, int] | None = {} if self.reading.across else None

    def decoded(self, name: str, tensors: Sequence[LiveTensor]) -> list[torch.Tensor]:
        """The leaves of `tensors`, decoded once, where a cast may be left to the caller.

        Raises ReadError.
        """
        stored = iter(self.stored(name, tensors))
        forms = [found.form for tensor in tensors for found in self._model.forms(tensor)]
        return [
            decoded_once(form, [next(stored) for _ in form.stored], self._device) for form in forms
        ]

    def stored(self, name: str, tensors: Sequence[LiveTensor]) -> list[torch.Tensor]:
        """The stored arrays of `tensors`, as the file holds them, in memory of their own.

        The memory goes when the last of the returned views goes. Raises ReadError.
        """
        found = self._model.parts(tensors)
        store = DiskStore(self._headers, [DiskUnit(name, tuple(extent_of(t) for t in found))])
        try:
            scratch = self.reading.scratch(store.slabs[0].slab.nbytes)
            self.reading.read(name, lambda: self._fill(store, name, scratch))
        finally:
            store.close()
        leaves = [stored_leaf(t.dtype, t.shape) for t in found]
        placed = list(zip(store.slab_offsets(0), leaves, strict=True))
        if self.sums is not None and self.reading.fills:
            self.sums[name] = sum_of(scratch.narrow(0, at, leaf.nbytes) for at, leaf in placed)
        return [view_leaf(scratch, at, leaf) for at, leaf in placed]

    def _fill(self, store: DiskStore, name: str, scratch: torch.Tensor) -> None:
        landing = Landing.at(scratch.data_ptr())
        job = Job(store.pieces(0, landing), lambda: _settle(store, landing), keep=scratch)
        try:
            self._readers.submit(job)
            while not job.wait(1.0):
                pass
        except BaseException:
            # Readers still write to the scratch memory and read the files, which go after this.
            self._readers.cancel_orphan(job)
            job.wait(STUCK_SECONDS)
            raise
        job.raise_error(name)


def _settle(store: DiskStore, landing: Landing) -> None:
    store.settle(0, landing)
