"""Models that a GGUF pack has loaded: its tensors keep LoRAs as notes, which travel with the bytes.

Such a tensor is one array of packed bytes; type, true shape and patches are attributes of it, and
the pack's own layers unpack and patch it at each use. The engine moves the bytes and hands the
notes on, but would refuse notes that hold tensors, for it does not know whether they are to move,
too. These are not: the pack brings them itself. So they are aside while the model is looked at.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_NAME = "GGML"
NOTES = ("tensor_type", "tensor_shape", "patches")  # what such a tensor says of itself


def is_packed(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a GGUF pack's."""
    return type(tensor).__name__.startswith(_NAME)


def is_bytes(tensor: torch.Tensor) -> bool:
    """Whether it is packed and its pack patches it at each use; others it patches as they load."""
    return is_packed(tensor) and not tensor.is_floating_point()


def has_patches(tensor: torch.Tensor) -> bool:
    """Whether its pack is to patch it at each use."""
    return is_packed(tensor) and bool(vars(tensor).get("patches"))


def on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without data like one of the pack's, with its notes, and no patches yet."""
    if not is_packed(tensor):
        return torch.empty_like(tensor, device="meta")
    bare = torch.empty(tensor.size(), dtype=tensor.dtype, device="meta")
    made: Any = torch.Tensor._make_subclass(type(tensor), bare)
    vars(made).update(vars(tensor) | {"patches": []})
    return made  # type: ignore[no-any-return]


@contextmanager
def patches_aside(root: torch.nn.Module) -> Iterator[None]:
    """Empties the packed tensors' lists of patches, in place: who has taken a list over has it yet.

    They are whole again afterwards.
    """
    lists: list[list[Any]] = [
        noted
        for tensor in root.parameters()
        if is_packed(tensor) and isinstance(noted := vars(tensor).get("patches"), list) and noted
    ]
    kept = [list(noted) for noted in lists]
    for noted in lists:
        noted.clear()
    try:
        yield
    finally:
        for noted, before in zip(lists, kept, strict=True):
            noted[:] = before
