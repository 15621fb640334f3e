"""Files of tensors and words that are summed up: read as they were written, or not at all.

A file is a safetensors file of its own and replaces the one before it in one step. Headers are
checked by every reader; a bit that turned in the tensors is noticed by the sum alone.
"""

import hashlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import torch

_WORDS, _SUM = "blockswap.words", "blockswap.sum"


def write_summed(path: Path, words: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replaces the file at `path`; it is on the disk when this returns. Tensors are on the CPU.

    Raises OSError, leaving the older file and no other.
    """
    from safetensors.torch import save

    metadata = {_WORDS: words, _SUM: _sum(words, tensors)}
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with part.open("xb") as file:
            file.write(save(dict(tensors), metadata=metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_summed(path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """Words and tensors. Raises OSError, or ValueError where it is not what was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            # In memory of their own: a mapped file lies anywhere, and kernels round by alignment.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if _WORDS not in told or told.get(_SUM) != _sum(told[_WORDS], tensors):
        raise ValueError("its contents are not those that were written")
    return told[_WORDS], tensors


def _sum(words: str, tensors: Mapping[str, torch.Tensor]) -> str:
    found = hashlib.sha256(words.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
