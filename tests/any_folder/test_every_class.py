"""Every transformer class of diffusers, opened from the folder that save_pretrained writes.

Each is equal to the last bit to its `from_pretrained`, on the CPU or the simulated accelerator, and
takes the bytes of its plan. BLOCKSWAP_ANY_MODEL=all runs every class x device x what is asked.
"""

import gc
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    CPU_ONLY,
    REACHED_INTO,
    TINY,
    build,
    device_bytes,
    outputs,
    transformer_class,
)

from blockswap import open_transformer
from blockswap.errors import StateError
from blockswap.plan.swap_plan import PlannedUnit

DEVICES = ("cpu", "sim-eager")
ASKED: dict[str, dict[str, Any]] = {
    "list": {"blocks": "0-1", "prefetch_blocks": 1},
    "count": {"blocks_to_swap": 9},
    "automatic": {},
}


def _cases() -> list[Any]:
    """One case per class; what is asked and the device in turn, so that all pairs of them occur."""
    if os.environ.get("BLOCKSWAP_ANY_MODEL") == "all":
        rows = list(itertools.product(TINY, DEVICES, ASKED))
    else:
        turns = itertools.cycle(itertools.product(DEVICES, ASKED))
        rows = [(name, *turn) for name, turn in zip(TINY, turns, strict=False)]
    rows = [(name, "cpu" if name in CPU_ONLY else on, asked) for name, on, asked in rows]
    return [pytest.param(*row, id="-".join(row)) for row in dict.fromkeys(rows)]


def loaded(name: str, folder: Path) -> torch.nn.Module:
    """By the library, with weights in memory of their own.

    What it maps from the file lies at offsets of 4 or 8 bytes, where fp32 kernels of the CPU round
    otherwise than for the same weights anywhere else.
    """
    found = transformer_class(name).from_pretrained(folder).requires_grad_(False)
    for tensor in (*found.parameters(), *found.buffers()):
        tensor.data = tensor.data.clone()
    return found


@pytest.mark.parametrize(("name", "device", "asked"), _cases(), indirect=["device"])
def test_opened_from_its_folder(
    name: str, device: torch.device, asked: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    build(name).save_pretrained(tmp_path)
    wanted = outputs(loaded(name, tmp_path).to(device), name, device)
    args = dict(ASKED[asked])
    if name in REACHED_INTO and (asked != "automatic" or device.type == "cpu"):
        args = {"blocks": "1"}  # on the CPU all blocks of a file are streamed by default
    gc.collect()  # what earlier tests left on the device is not this one's
    held = device_bytes(device, request)
    model: Any = open_transformer(tmp_path, args, device=device)
    with model.blockswap as swap:
        assert type(model) is transformer_class(name)
        assert _blocks(swap.plan.units, name) == TINY[name].units
        assert swap.plan.streamed or asked == "automatic"
        if device.type != "cpu":
            assert device_bytes(device, request) - held == swap.plan.device_bytes
        found = outputs(model, name, device)
    assert len(found) == len(wanted)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", REACHED_INTO)
def test_a_model_that_reaches_into_a_streamed_block_is_told_which(
    name: str, tmp_path: Path
) -> None:
    build(name).save_pretrained(tmp_path)
    model: Any = open_transformer(tmp_path, {"blocks": "0"}, device="cpu")
    with model.blockswap as swap:
        assert swap.plan.streamed == (f"transformer_blocks.{REACHED_INTO[name]}",)
        with pytest.raises(StateError, match=r"transformer_blocks\.0\.norm1.* while its block is"):
            outputs(model, name, torch.device("cpu"))


def _blocks(units: Sequence[PlannedUnit], name: str) -> dict[str, int]:
    """How many units of which list of blocks; what else a class has for a unit is left out."""
    found = Counter(unit.name.rpartition(".")[0] for unit in units)
    return {path: found[path] for path in TINY[name].units}
