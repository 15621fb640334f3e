"""A hundred rounds leave memory, threads and descriptors as they were; RAM is never doubled."""

import gc
import re
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from cases import Shelf, forward, fresh, skeleton
from torch import nn

from blockswap import BlockSwapArgs, open_transformer, swap_blocks
from blockswap.store.ram import RamStore

ROUNDS = 100
MIB = 1024 * 1024


class Wide(nn.Module):
    """Six blocks of 1.5 MiB: a leak of one block a round would show as 150 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(640, 614) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x).sum(-1, keepdim=True)
        return x


def anonymous_bytes() -> int:
    """Not all that is its own: a library's pages become so when another process of it ends."""
    gc.collect()
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return int(psutil.Process().memory_full_info().uss)
    (line,) = re.findall(r"^Anonymous: +([0-9]+) kB", rollup.read_text(), re.MULTILINE)
    return int(line) * 1024


class Watch:
    """What a process holds, before and after some rounds."""

    def __init__(self) -> None:
        gc.collect()
        self.threads = set(threading.enumerate())
        self.files = psutil.Process().num_fds()
        self.bytes = anonymous_bytes()

    def check(self, *, grown: int) -> None:
        gc.collect()
        assert set(threading.enumerate()) == self.threads
        assert psutil.Process().num_fds() == self.files
        assert anonymous_bytes() - self.bytes < grown


def test_a_hundred_rounds_of_swap_blocks_leak_nothing() -> None:
    device = torch.device("cpu")
    model = Wide()
    x = torch.randn(2, 640)

    def rounds(count: int) -> None:
        for _ in range(count):
            with swap_blocks(model, {"blocks_to_swap": 5}, device=device), torch.no_grad():
                model(x)

    rounds(10)
    watch = Watch()
    rounds(ROUNDS)
    watch.check(grown=16 * MIB)


def test_a_hundred_rounds_of_open_transformer_leak_nothing(
    tmp_path: Any,
) -> None:
    from safetensors.torch import save_file

    device = torch.device("cpu")
    save_file(Wide().state_dict(), tmp_path / "wide.safetensors")
    x = torch.randn(2, 640)

    def rounds(count: int) -> None:
        for _ in range(count):
            with torch.device("meta"):
                empty = Wide()
            model = open_transformer(
                tmp_path / "wide.safetensors",
                {"blocks_to_swap": 5},
                device=device,
                skeleton=empty,
            )
            with torch.no_grad():
                model(x)
            model.blockswap.close()  # type: ignore[union-attr, operator]

    rounds(10)
    watch = Watch()
    rounds(ROUNDS)
    watch.check(grown=16 * MIB)


def test_rounds_on_the_accelerator_leak_neither_threads_nor_files(
    sim_device: torch.device, sim: Any, shelf: Shelf
) -> None:
    def rounds(count: int) -> None:
        for _ in range(count):
            with swap_blocks(fresh("mini"), {"blocks_to_swap": 4}, device=sim_device) as swap:
                with torch.no_grad():
                    forward(swap.model, "mini", sim_device)
            model = open_transformer(
                shelf.file("mini"),
                {"blocks_to_swap": 4},
                device=sim_device,
                skeleton=skeleton("mini"),
            )
            with torch.no_grad():
                forward(model, "mini", sim_device)
            model.blockswap.close()  # type: ignore[union-attr, operator]

    rounds(2)
    gc.collect()
    before = sim.counters()
    watch = Watch()
    rounds(20)
    watch.check(grown=32 * MIB)
    after = sim.counters()
    assert after.device_bytes == before.device_bytes
    assert after.pinned_bytes == before.pinned_bytes


class HostBytes:
    """Follows what a store holds: the module's own leaves and the arena's chunks."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.peak = 0
        self._arena: Any = None

    def look(self, arena: Any) -> None:
        """Counts every distinct storage that parameters or the arena's chunks keep alive."""
        storages = {
            p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
            for p in self._model.parameters()
        }
        for chunk in arena._chunks:
            if chunk.memory is not None:
                storage = chunk.memory.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        self.peak = max(self.peak, sum(storages.values()))


@pytest.mark.parametrize("blocks", [3, 6, 13])
@pytest.mark.parametrize("moment", ["opening", "closing"])
def test_ram_store_never_holds_more_than_the_model_and_one_block(
    moment: str, blocks: int, sim_device: torch.device, sim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every copy of a leaf into, or out of, the arena is looked at while both ends are alive."""
    model = nn.Module()
    model.blocks = nn.ModuleList(
        nn.Sequential(nn.Linear(96, 160), nn.Linear(160, 96), nn.LayerNorm(96))
        for _ in range(blocks)
    )
    whole = sum(p.nbytes for p in model.parameters())
    block = whole // blocks
    held = HostBytes(model)
    watching = [moment == "opening"]
    for name in ("adopt", "give_back"):
        real = getattr(RamStore, name)

        def watched(self: RamStore, *args: Any, real: Any = real) -> Any:
            result = real(self, *args)
            if watching[0]:
                held.look(self._arena)
            return result

        monkeypatch.setattr(RamStore, name, watched)
    gc.collect()
    sim.reset()
    before = sim.counters().pinned_bytes
    swap = swap_blocks(model, BlockSwapArgs(blocks_to_swap=blocks), device=sim_device)
    watching[0] = moment == "closing"
    pinned = sim.counters().pinned_bytes_peak - before
    swap.close()
    assert held.peak > 0
    assert held.peak <= whole + block * 1.15
    assert pinned <= whole * 1.15


def test_opening_keeps_no_second_copy_of_a_block_alive(sim_device: torch.device, sim: Any) -> None:
    """After opening, the streamed parameters' memory is the arena's and nothing else."""
    model = fresh("original")
    with swap_blocks(model, {"blocks_to_swap": 6}, device=sim_device):
        for name, parameter in model.blocks.named_parameters():  # type: ignore[union-attr]
            assert parameter.is_pinned(), name
    assert not any(p.is_pinned() for p in model.parameters())
