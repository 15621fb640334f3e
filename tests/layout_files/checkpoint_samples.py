"""Small checkpoints for the tests of this folder, written by the reference library."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from blockswap.layout.geometry import WanGeometry, file_names
from blockswap.layout.shards import DIFFUSERS_STEM

# Every variant's structure in a few kilobytes. Heads of 16, so the heads have to be stated.
TINY = WanGeometry(
    dim=32,
    ffn_dim=48,
    num_layers=4,
    num_heads=2,
    in_channels=4,
    out_channels=4,
    text_dim=24,
    freq_dim=16,
)
STATED = {"wan.num_heads": "2"}
INDEX = f"{DIFFUSERS_STEM}.safetensors.index.json"

Shapes = Mapping[str, tuple[int, ...]]


def shard_name(number: int, count: int) -> str:
    return f"{DIFFUSERS_STEM}-{number:05d}-of-{count:05d}.safetensors"


def zeros(shapes: Shapes, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}


def save_shapes(path: Path, shapes: Shapes, metadata: Mapping[str, str] | None = STATED) -> Path:
    save_file(zeros(shapes), path, metadata=dict(metadata) if metadata else None)
    return path


def save_geometry(path: Path, geometry: WanGeometry = TINY) -> Path:
    return save_shapes(path, file_names(geometry))


def save_shards(folder: Path, shards: Iterable[Iterable[str]]) -> Path:
    """Shards of one-element tensors with these names, and the index that fits them."""
    shards = [list(names) for names in shards]
    weight_map = {}
    for number, names in enumerate(shards, 1):
        name = shard_name(number, len(shards))
        save_file(zeros(dict.fromkeys(names, (1,))), folder / name)
        weight_map.update(dict.fromkeys(names, name))
    return save_index(folder, weight_map)


def save_index(folder: Path, weight_map: object) -> Path:
    path = folder / INDEX
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return path
