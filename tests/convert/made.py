"""Checkpoints for the tests of conversion: any names, shapes and dtypes, whole or in shards."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from blockswap.layout.dtypes import ITEM_BYTES
from blockswap.layout.writing import header_bytes

INDEX = "diffusion_pytorch_model.safetensors.index.json"


class Raw:
    """A tensor as the writer sees it, with its bytes."""

    def __init__(self, name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
        self.name, self.dtype, self.shape, self.data = name, dtype, shape, data

    @property
    def nbytes(self) -> int:
        return len(self.data)


def raw(name: str, dtype: str, shape: tuple[int, ...], seed: int = 0) -> Raw:
    """Random finite values of any dtype."""
    draw = torch.Generator().manual_seed(seed)
    count = int(torch.Size(shape).numel())
    if "float" in dtype:
        values = torch.randn(count, generator=draw).to(getattr(torch, dtype))
    else:
        top = 2 if dtype == "bool" else 100
        values = torch.randint(0, top, (count,), generator=draw).to(getattr(torch, dtype))
    data = bytes(values.view(torch.uint8).tolist()) if count else b""
    assert len(data) == count * ITEM_BYTES[dtype]
    return Raw(name, dtype, shape, data)


def write_raw(
    path: Path,
    tensors: Sequence[Raw],
    metadata: Mapping[str, str] | None = None,
    *,
    spaces: int = 0,
) -> Path:
    """A file with its tensors in this very order, `spaces` more before the data than needed."""
    header = header_bytes(metadata or {}, tensors, alignment=1)[8:] + b" " * spaces
    body = b"".join(tensor.data for tensor in tensors)
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)
    return path


def write_shards(folder: Path, shards: Sequence[Sequence[Raw]], *, spaces: int = 0) -> Path:
    folder.mkdir()
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"diffusion_pytorch_model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_raw(folder / name, tensors, spaces=spaces * number)
        weight_map.update({tensor.name: name for tensor in tensors})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def save(path: Path, tensors: Mapping[str, torch.Tensor], **metadata: str) -> Path:
    save_file(dict(tensors), path, metadata or None)
    return path


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor: equality that tells NaN and -0 apart."""
    flat = tensor.contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""
