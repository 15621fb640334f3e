"""Bytes delivered equal the file's: every tensor of files with any sizes, offsets, dtypes, shards.

Layouts are drawn: odd sizes, empty tensors, strangers in between, headers of any length, several
shards. Each goes through `open_transformer` in every way of reading a file, from the disk store
and, where there is one, from the RAM store; what a block finds in its parameters is compared.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_streamed_file import PLATFORMS
from torch import nn

from blockswap import BlockSwapArgs, open_transformer
from blockswap.layout.writing import header_bytes

DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int8", "uint8", "bool")
BLOCKS = 3
Shape = tuple[int, ...]


class Stored:
    """A tensor as a file holds it; `data` are its bytes, all of them values of its dtype."""

    def __init__(self, name: str, dtype: str, shape: Shape, seed: int) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape
        kind = getattr(torch, dtype)
        self.nbytes = int(torch.Size(shape).numel()) * kind.itemsize
        draw = torch.Generator().manual_seed(seed)
        top = 2 if dtype == "bool" else 256
        drawn = torch.randint(0, top, (self.nbytes,), generator=draw, dtype=torch.uint8)
        self.data = drawn.numpy().tobytes()


class Block(nn.Module):
    """Parameters of any shape and dtype; a forward tells which bytes it finds in them."""

    def __init__(self, tensors: Sequence[Stored], prefix: str) -> None:
        super().__init__()
        self.found: dict[str, bytes] = {}
        for tensor in tensors:
            empty = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype), device="meta")
            name = tensor.name.removeprefix(prefix)
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.found = {name: bits(parameter) for name, parameter in self.named_parameters()}
        return x


class Model(nn.Module):
    def __init__(self, blocks: Sequence[Sequence[Stored]]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(tensors, f"model.blocks.{number}.") for number, tensors in enumerate(blocks)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def bits(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(0, 90)),
    st.tuples(st.integers(0, 5), st.integers(1, 3000)),
    st.just((129, 1031)),  # larger than the gap that is read over
)


@st.composite
def files(draw: st.DrawFn) -> tuple[list[list[Stored]], list[list[Stored]], list[int]]:
    """Tensors of each block, tensors of each shard in the order of the file, extra header bytes."""
    seeds, blocks = iter(range(10_000)), []
    for number in range(BLOCKS):
        specs = draw(st.lists(st.tuples(st.sampled_from(DTYPES), shapes), min_size=1, max_size=5))
        blocks.append(
            [
                Stored(f"model.blocks.{number}.p{i}", dtype, shape, next(seeds))
                for i, (dtype, shape) in enumerate(specs)
            ]
        )
    strangers = [
        Stored(f"vae.{i}", "uint8", (size,), next(seeds))
        for i, size in enumerate(draw(st.lists(st.sampled_from([0, 1, 3, 4095, 140_000]))))
    ]
    everything = draw(st.permutations([t for block in blocks for t in block] + strangers))
    shards: list[list[Stored]] = [[] for _ in range(draw(st.integers(1, 3)))]
    for tensor in everything:
        shards[draw(st.integers(0, len(shards) - 1))].append(tensor)
    shards = [shard for shard in shards if shard]
    return blocks, shards, [draw(st.integers(0, 40)) for _ in shards]


def written(folder: Path, shards: Sequence[Sequence[Stored]], spaces: Sequence[int]) -> Path:
    """The shards, with headers of any length, and the index that a folder of them has."""
    owner, count = {}, len(shards)
    for number, (tensors, extra) in enumerate(zip(shards, spaces, strict=True), 1):
        name = f"diffusion_pytorch_model-{number:05d}-of-{count:05d}.safetensors"
        header = header_bytes({}, tensors, alignment=1)[8:] + b" " * extra
        data = b"".join(tensor.data for tensor in tensors)
        (folder / name).write_bytes(len(header).to_bytes(8, "little") + header + data)
        owner.update({tensor.name: name for tensor in tensors})
    if count == 1:
        return folder / name
    index = {"metadata": {}, "weight_map": owner}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def assert_delivered(
    path: Path, blocks: Sequence[Sequence[Stored]], device: torch.device, **args: Any
) -> str:
    """Two forwards, each with the file's own bytes; tells where the blocks rested."""
    wanted = BlockSwapArgs(blocks_to_swap=BLOCKS, prefetch_blocks=1, **args)
    model: Any = open_transformer(path, wanted, device=device, skeleton=Model(blocks))
    for _ in range(2):
        with torch.no_grad():
            model(torch.zeros(1, device=device))
        for block, tensors in zip(model.blocks, blocks, strict=True):
            expected = {tensor.name.rpartition(".")[2]: tensor.data for tensor in tensors}
            assert block.found == expected
            block.found = {}
    tiers = {unit.tier for unit in model.blockswap.plan.units}
    model.blockswap.close()
    return " ".join(sorted(tiers))


many = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("platform", PLATFORMS)
@many
@given(given_files=files())
def test_every_tensor_is_the_files_in_every_way_of_reading(
    platform: str, given_files: tuple[Any, Any, Any]
) -> None:
    blocks, shards, spaces = given_files
    change, _ = PLATFORMS[platform]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = written(Path(folder), shards, spaces)
        if change is not None:
            change(patch)
        assert assert_delivered(path, blocks, torch.device("cpu")) == "disk"


@pytest.mark.parametrize("tier", ["disk", "ram"])
@many
@given(given_files=files())
def test_every_tensor_is_the_files_on_an_accelerator(
    tier: str, sim_device: torch.device, given_files: tuple[Any, Any, Any]
) -> None:
    blocks, shards, spaces = given_files
    budget = {"ram_budget": "1GiB"} if tier == "ram" else {}
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), shards, spaces)
        assert assert_delivered(path, blocks, sim_device, **budget) == tier
