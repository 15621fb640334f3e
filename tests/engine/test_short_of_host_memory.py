"""More than host memory can give is refused in a sentence, and nothing is left of the attempt."""

import json
import mmap
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Shelf, forward, reference, skeleton
from safetensors.torch import load_file, save_file

from blockswap import open_transformer
from blockswap.errors import BlockSwapError, PlanError
from blockswap.store import arena, host_memory
from blockswap.store.host_memory import most_host_bytes
from blockswap.stream.device import host_buffer, huge_page_buffer
from blockswap.units import format_bytes

CPU = torch.device("cpu")
HUGE = 1 << 62


@pytest.fixture
def scarce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the system says is to be had."""

    def set_free(kib: int, swap_kib: int = 0, limit: str = "max") -> None:
        told = f"MemAvailable: {kib} kB\nSwapFree: {swap_kib} kB\n"
        (tmp_path / "meminfo").write_text(told)
        (tmp_path / "limit").write_text(limit)
        monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(host_memory, "_CGROUPS", ((tmp_path / "limit", tmp_path / "none"),))

    return set_free


@pytest.mark.parametrize(
    "args", [None, {"blocks_to_swap": 5}, {"blocks": "0-3"}, {"vram_budget": "1GiB"}]
)
def test_a_plan_beyond_memory_is_refused_with_both_figures(
    args: Any, scarce: Any, shelf: Shelf
) -> None:
    scarce(8)
    with pytest.raises(PlanError, match=r"needs [\d.]+ [KMG]iB .* 8\.0 KiB are free") as no:
        open_transformer(shelf.file("mini"), args, device=CPU, skeleton=skeleton("mini"))
    assert "\n" not in str(no.value)
    scarce(8, swap_kib=1 << 20)  # what the system can swap out for it is had
    model: Any = open_transformer(shelf.file("mini"), args, device=CPU, skeleton=skeleton("mini"))
    with torch.no_grad():
        assert torch.equal(forward(model, "mini", CPU), reference("mini", CPU))
    model.blockswap.close()


def test_the_most_is_the_least_of_system_and_container(scarce: Any) -> None:
    scarce(8, swap_kib=4)
    assert most_host_bytes() == 12 * 1024
    scarce(8, swap_kib=4, limit="4096")
    assert most_host_bytes() == 4096


@pytest.mark.parametrize("make", [host_buffer, huge_page_buffer])
def test_a_buffer_that_cannot_be_had_is_one_sentence(make: Any) -> None:
    for nbytes in (HUGE, 1 << 70):
        with pytest.raises(
            PlanError, match=f"a buffer of {format_bytes(nbytes)} in host memory"
        ) as no:
            make(nbytes)
        assert "\n" not in str(no.value)


def test_pageable_memory_that_cannot_be_had_is_one_sentence() -> None:
    with pytest.raises(PlanError, match=f"{format_bytes(HUGE)} of host memory"):
        arena.pageable(HUGE)


@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_mapping_refused_while_opening_leaves_nothing(
    nth: int, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = mmap.mmap, []

    def scant(*args: Any, **how: Any) -> Any:
        made.append(args)
        if len(made) > nth:
            raise OSError(12, "Cannot allocate memory")
        return real(*args, **how)

    monkeypatch.setattr(mmap, "mmap", scant)
    with pytest.raises(PlanError, match="refused by the system"):
        open_transformer(
            shelf.file("mini"), {"blocks_to_swap": 5}, device=CPU, skeleton=skeleton("mini")
        )
    monkeypatch.undo()
    model: Any = open_transformer(shelf.file("mini"), None, device=CPU, skeleton=skeleton("mini"))
    with torch.no_grad():
        assert torch.equal(forward(model, "mini", CPU), reference("mini", CPU))
    model.blockswap.close()


@pytest.mark.parametrize("args", [None, {"blocks_to_swap": 2}, {"vram_budget": "8GiB"}])
def test_a_truthful_sparse_file_with_blocks_larger_than_any_memory(
    args: Any, shelf: Shelf, tmp_path: Path
) -> None:
    from diffusers import WanTransformer3DModel

    path, head, end = tmp_path / "sparse.safetensors", {}, 0
    small = tmp_path / "small.safetensors"
    shape = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 128, "num_layers": 2}
    save_file(WanTransformer3DModel(**shape).state_dict(), small)
    for name, value in load_file(small).items():
        size = [1 << 34 if n == 128 and ".ffn." in name else n for n in value.shape]
        nbytes = 4 * int(torch.tensor(size, dtype=torch.float64).prod())
        head[name] = {"dtype": "F32", "shape": size, "data_offsets": [end, end + nbytes]}
        end += nbytes
    raw = json.dumps({"__metadata__": {"wan.num_heads": "2"}, **head}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        try:
            file.truncate(8 + len(raw) + end)
        except OSError:
            pytest.skip("no file of this size here")
    with pytest.raises(BlockSwapError, match=r"needs .*[\d.]+ [TG]iB"):
        open_transformer(path, args, device=CPU)
