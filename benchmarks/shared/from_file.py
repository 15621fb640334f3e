"""Owns how a benchmark's own small model is opened from a file: written, opened, closed."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

import torch
from safetensors.torch import save_file

from blockswap.swap.running.handle import Swap

Model = TypeVar("Model", bound=torch.nn.Module)


@contextmanager
def opened_from_file(
    make: Callable[[], Model], open_it: Callable[[Path, Model], object]
) -> Iterator[tuple[Model, Swap]]:
    """A model that `make` makes, its weights in a file alone, and its swap; closed at the end.

    `open_it` opens the file for a skeleton.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "blocks.safetensors"
        save_file(make().state_dict(), file)
        with torch.device("meta"):
            skeleton = make()
        open_it(file, skeleton)
        swap = cast(Swap, skeleton.blockswap)
        try:
            yield skeleton, swap
        finally:
            swap.close()
