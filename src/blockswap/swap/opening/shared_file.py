"""A checkpoint read once for all ranks of a host: into shared memory, as it computes."""

from collections.abc import Sequence

import torch

from ...adapters.live import LiveTensor
from ...adapters.stored import StoredModel
from ...errors import PlanError
from ...layout.stamp import Stamped
from ...ranks.group import Ranks
from ...ranks.shared_weights import SharedWeights, share_weights, shared_bytes
from ...store.host_memory import free_host_bytes
from ...store.readers import ReaderPool
from ...stream.device import Device
from ...units import format_bytes
from ..assembly.unit_reader import Loader


def share_file(
    model: StoredModel,
    headers: Sequence[Stamped],
    ranks: Ranks,
    device: Device,
    block_lists: Sequence[str] = (),
) -> SharedWeights:
    """Fills the parameters of the skeleton, on all ranks, from one reading of the file a host.

    LoRAs behind the model are merged on the way, by the `device` of the rank that reads. Buffers
    that the file holds are read by each rank for itself. Raises as `share_weights`, ReadError and
    PlanError.
    """
    readers = ReaderPool()
    loader = Loader(model, headers, readers, device)

    def fill(name: str, tensors: Sequence[LiveTensor], homes: Sequence[torch.Tensor]) -> None:
        leaves = loader.decoded(name or "the rest of the model", tensors)
        for home, leaf in zip(homes, leaves, strict=True):
            home.copy_(leaf)

    try:
        with ranks.together("find room for the weights"):
            _refuse_beyond_memory(model)
        weights = share_weights(model.live.root, ranks, fill, block_lists)
        with ranks.together("read buffers"):
            _fill_buffers(model, loader)
    finally:
        readers.close()
    return weights


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
