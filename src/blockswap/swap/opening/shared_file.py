"""A checkpoint read once for all ranks of a host into shared memory; other LoRAs merged there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from ...adapters.live import LiveTensor
from ...adapters.stored import StoredModel
from ...errors import PlanError
from ...layout.stamp import Stamped
from ...lora.request import Lora
from ...ranks.group import Ranks
from ...ranks.host_contents import refuse_other_contents, spans_hosts
from ...ranks.same_model import refuse_other_files
from ...ranks.shared_weights import Fill, SharedWeights, share_weights, shared_bytes
from ...store.host_memory import free_host_bytes
from ...store.readers import ReaderPool
from ...stream.device import Device
from ...units import format_bytes
from ..assembly.unit_reader import Loader
from ..guards.closed_model import refuse_closed
from .found_model import FoundModel


def share_file(found: FoundModel, ranks: Ranks, device: Device) -> SharedWeights:
    """Fills the parameters of the skeleton, on all ranks, from one reading of the file a host.

    LoRAs behind the model are merged on the way, by the `device` of the rank that reads. Buffers
    that the file holds are read by each rank for itself. Raises as `share_weights`, ReadError and
    PlanError.
    """
    model, headers = found.model, found.checkpoint.headers
    with _loading(model, headers, device) as loader:
        with ranks.together("find room for the weights"):
            _refuse_beyond_memory(model)
        loader.sums = {} if spans_hosts(ranks) else None
        weights = share_weights(model.live, ranks, _filling(loader), loader.sums)
        with ranks.together("read buffers"):
            _fill_buffers(model, loader)
        if spans_hosts(ranks):
            refuse_other_contents(ranks, loader.sums)
    return weights


class SharedLoras:
    """LoRAs merged into a file's weights that ranks share, which may be others later on."""

    def __init__(
        self, found: FoundModel, ranks: Ranks, weights: SharedWeights, device: Device
    ) -> None:
        self._found, self._ranks, self._weights, self._device = found, ranks, weights, device

    def with_loras(self, loras: tuple[Lora, ...]) -> Callable[[], None]:
        """What merges them, while the model is closed on all ranks. Raises where they do not fit.

        That raises, with the weights as they were, on all ranks or on none.
        """
        assert self._found.with_loras is not None, "a model that can have LoRAs"
        find = self._found.with_loras(loras)

        def merge() -> None:
            with self._ranks.together("find other LoRAs"):
                found = find()
                self._weights.refuse_rounding(found.model.live)
                refuse_other_files(self._ranks, found.checkpoint.headers)
            try:
                with self._ranks.together("merge other LoRAs"):
                    sums = self._fill(found)
                if spans_hosts(self._ranks):
                    refuse_other_contents(self._ranks, sums)
            except BaseException:
                self._as_before()
                raise
            self._found = found

        return merge

    def _as_before(self) -> None:
        try:
            with self._ranks.together("merge the LoRAs of before"):
                self._fill(self._found)
        except BaseException:
            # The shared weights are partly with these LoRAs, partly with those: nobody runs them.
            root, label = self._found.model.live.root, self._found.checkpoint.label
            refuse_closed(root, label, "open_transformer")  # a text encoder takes no LoRAs
            raise

    def _fill(self, found: FoundModel) -> Mapping[str, int] | None:
        """The sums of what was read, if they are wanted."""
        models = found.model, self._found.model
        with _loading(found.model, found.checkpoint.headers, self._device) as loader:
            loader.sums = {} if spans_hosts(self._ranks) else None
            self._weights.refill(
                _filling(loader),
                lambda t: any(f.form.merges for model in models for f in model.forms(t)),
            )
            return loader.sums


@contextmanager
def _loading(model: StoredModel, headers: Sequence[Stamped], device: Device) -> Iterator[Loader]:
    readers = ReaderPool()
    try:
        yield Loader(model, headers, readers, device)
    finally:
        readers.close()


def _filling(loader: Loader) -> Fill:
    def fill(name: str, tensors: Sequence[LiveTensor], homes: Sequence[torch.Tensor]) -> None:
        leaves = loader.decoded(name or "the rest of the model", tensors)
        for home, leaf in zip(homes, leaves, strict=True):
            home.copy_(leaf)

    return fill


def _refuse_beyond_memory(model: StoredModel) -> None:
    wanted, free = shared_bytes(model.live), free_host_bytes()
    if free is not None and wanted > free:
        raise PlanError(
            f"mesh= keeps the weights once in host memory for all ranks, {format_bytes(wanted)}, "
            f"and {format_bytes(free)} is free: close other programs, or open it without mesh"
        )


def _fill_buffers(model: StoredModel, loader: Loader) -> None:
    buffers = [t for t in model.live.rest if model.forms(t) and not t.places[0].is_parameter]
    if not buffers:
        return
    for live, leaf in zip(buffers, loader.decoded("buffers", buffers), strict=True):
        value = leaf.to(live.tensor.dtype)
        for place in live.places:
            place.table[place.name] = value
