"""Which embedding tables are read by rows: large ones that nothing but `nn.Embedding` uses."""

from collections.abc import Sequence

import torch

from ..store.leaves import leaf_tensors
from ..store.places import Place

# A prompt asks for some hundred rows. Of a table this small it might ask for all, and reading rows
# costs the forward a look at its token ids on the host.
LEAST_ROWS = 4096


def is_lookup_table(tensor: torch.Tensor, places: Sequence[Place]) -> bool:
    """Whether a tensor that hangs in `places` is only ever looked up in.

    A table that is an output head, too, hangs in another layer as well and stays whole.
    """
    plain = tensor.dim() == 2 and next(iter(leaf_tensors(tensor)))[1] is tensor
    if not plain or tensor.shape[0] < LEAST_ROWS or tensor.device.type not in ("cpu", "meta"):
        return False
    return all(_looks_up(place) for place in places)


def _looks_up(place: Place) -> bool:
    # `max_norm` writes to the rows that are looked up.
    module = place.module
    return isinstance(module, torch.nn.Embedding) and place.name == "weight" and not module.max_norm
