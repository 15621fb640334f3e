"""Every transformer class of diffusers, swapped from RAM: equal to the last bit, bytes exact.

CI runs each class twice, with pairs of device and what is asked in turn; `make test-any-model` all
of them (BLOCKSWAP_ANY_MODEL=all).
"""

import functools
import gc
import itertools
import os
from collections import Counter
from typing import Any

import pytest
import torch
from tiny_models import CPU_ONLY, REACHED_INTO, TINY, build, device_bytes, exported, outputs

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.adapters.live import describe_module
from blockswap.errors import StateError
from blockswap.store.leaves import leaf_tensors

ASKED: dict[str, dict[str, Any]] = {
    "list": {"blocks": "0,2-3", "prefetch_blocks": 1},
    "count": {"blocks_to_swap": 9},
    "automatic": {},
    "on demand": {"blocks_to_swap": 2, "prefetch_blocks": 0},
}
MODES = ("sim-eager", "sim-lazy")


def _cases() -> list[Any]:
    """Each class on the CPU and simulated, in turn with what is asked, so that all pairs occur."""
    if os.environ.get("BLOCKSWAP_ANY_MODEL") == "all":
        rows = list(itertools.product(TINY, ("cpu", *MODES), ASKED))
    else:
        on_host = zip(TINY, itertools.cycle(ASKED), strict=False)
        on_sim = zip(TINY, itertools.cycle(itertools.product(MODES, ASKED)), strict=False)
        rows = [(name, "cpu", asked) for name, asked in on_host]
        rows += [(name, *turn) for name, turn in on_sim]
    rows = [row for row in rows if row[1] == "cpu" or row[0] not in CPU_ONLY]
    return [pytest.param(*row, id="-".join(row)) for row in rows]


@functools.cache
def expected(name: str, device: torch.device) -> list[torch.Tensor]:
    found = outputs(build(name).to(device), name, device)
    assert found
    assert all(torch.isfinite(one.float()).all() for one in found)
    return found


def test_every_exported_class_is_here() -> None:
    assert sorted(TINY) == exported()


@pytest.mark.parametrize("name", TINY)
def test_the_units_are_those_that_are_written_down(name: str) -> None:
    units = describe_module(build(name)).layout.units
    blocks = [unit for unit in units if unit.kind in ("block", "vace")]
    assert Counter(unit.list_name for unit in blocks) == dict(TINY[name].units)


@pytest.mark.parametrize(("name", "device", "asked"), _cases(), indirect=["device"])
def test_every_class_is_equal_to_the_last_bit(
    name: str, device: torch.device, asked: str, request: pytest.FixtureRequest
) -> None:
    args = _args(name, asked, device)
    wanted = expected(name, device)
    model = build(name)
    before = {label: tensor for label, tensor in model.named_parameters()}
    bytes_before = {label: _bytes(tensor) for label, tensor in before.items()}
    gc.collect()  # what earlier tests left on the device is not this one's
    held = device_bytes(device, request)
    with swap_blocks(model, BlockSwapArgs(**args), device=device) as swap:
        if asked != "automatic":
            assert swap.plan.streamed
        if device.type != "cpu":
            assert device_bytes(device, request) - held == swap.plan.device_bytes
        found = outputs(model, name, device)
    assert len(found) == len(wanted)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    after = dict(model.named_parameters())
    assert all(after[label] is tensor for label, tensor in before.items())
    assert {label: _bytes(tensor) for label, tensor in after.items()} == bytes_before


def _args(name: str, asked: str, device: torch.device) -> dict[str, Any]:
    args = dict(ASKED[asked])
    units = sum(count for path, count in TINY[name].units.items() if path != "vace_blocks")
    if asked == "list" and units < 4:
        args["blocks"] = "0,2"
    if name in REACHED_INTO and asked != "automatic" and device.type != "cpu":
        return {"blocks": "1-2"}
    return args


@pytest.mark.parametrize("name", REACHED_INTO)
def test_a_model_that_reaches_into_a_streamed_block_is_told_which(
    name: str, sim_device: torch.device
) -> None:
    model = build(name)
    with swap_blocks(model, BlockSwapArgs(blocks="0"), device=sim_device) as swap:
        assert swap.plan.streamed == (f"transformer_blocks.{REACHED_INTO[name]}",)
        words = "computes with transformer_blocks.0.norm1.*outside the run of its block"
        with pytest.raises(StateError, match=words):
            outputs(model, name, sim_device)


def _bytes(tensor: torch.Tensor) -> bytes:
    assert tensor.device.type == "cpu"
    parts = [leaf.detach().contiguous().reshape(-1) for _, leaf in leaf_tensors(tensor)]
    return b"".join(part.view(torch.uint8).numpy().tobytes() for part in parts if part.numel())
