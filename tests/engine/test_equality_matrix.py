"""Swapped equals unswapped to the last bit: every store, dtype, selection and prefetch distance."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cases import (
    DTYPES,
    FAMILIES,
    SIM_STORES,
    STORES,
    Shelf,
    forward,
    opened,
    reference,
    stores,
)

from pairs import pairwise

SELECTIONS: dict[str, dict[str, Any]] = {
    "list": {"blocks": "0,2-3"},
    "count": {"blocks_to_swap": 3},
    "all": {"blocks_to_swap": 99, "vace_blocks_to_swap": 99, "offload_txt_emb": True},
    "none": {"blocks_to_swap": 0},
}
PREFETCH = (0, 1, 2, 3)
LARGE = [family for family in FAMILIES if family != "mini"]


def check_forwards(
    family: str, device: torch.device, shelf: Shelf, store: str, case: dict[str, Any]
) -> None:
    args = {**SELECTIONS[case["selection"]], "prefetch_blocks": case["prefetch"]}
    if "vace" not in family:
        args.pop("vace_blocks_to_swap", None)
    dtype = case["dtype"]
    expected = [reference(family, device, dtype=dtype, shape=shape) for shape in (0, 1)]
    with opened(store, family, device, args, dtype=dtype, shelf=shelf) as (model, _):
        for round_number, shape in enumerate((0, 1, 0)):
            grad_off = torch.inference_mode if case["inference"] else torch.no_grad
            with grad_off():
                out = forward(model, family, device, shape=shape)
            assert torch.equal(out, expected[shape]), f"forward {round_number}"


def _ways(stores_there: Sequence[str]) -> list[dict[str, Any]]:
    """Every way to hold and bring blocks; in CI any two values of its axes together."""
    axes: dict[str, Any] = {
        "store": stores_there, "prefetch": PREFETCH, "inference": (False, True),
    }  # fmt: skip
    if not os.environ.get("BLOCKSWAP_EVERY_POINT"):
        return pairwise(**axes)
    return [dict(zip(axes, row, strict=True)) for row in itertools.product(*axes.values())]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_mini_model_is_bit_equal_in_every_dtype_and_selection(
    device: torch.device, shelf: Shelf, dtype: str, selection: str
) -> None:
    for way in _ways(stores(device)):
        case = {"selection": selection, "dtype": dtype, **way}
        check_forwards("mini", device, shelf, way["store"], case)


def _pairs(stores_there: tuple[str, ...]) -> list[dict[str, Any]]:
    return pairwise(
        family=LARGE,
        store=stores_there,
        dtype=DTYPES,
        selection=list(SELECTIONS),
        prefetch=PREFETCH,
        inference=(False, True),
    )


def _named(case: dict[str, Any]) -> str:
    grad = "inference" if case["inference"] else "no-grad"
    return (
        "-".join(str(case[k]) for k in ("family", "store", "dtype", "selection", "prefetch"))
        + f"-{grad}"
    )


@pytest.mark.parametrize("case", _pairs(STORES), ids=_named)
def test_wan_models_are_bit_equal_on_the_cpu(case: dict[str, Any], shelf: Shelf) -> None:
    check_forwards(case["family"], torch.device("cpu"), shelf, case["store"], case)


@pytest.mark.parametrize("case", _pairs(SIM_STORES), ids=_named)
def test_wan_models_are_bit_equal_on_the_simulated_accelerator(
    case: dict[str, Any], shelf: Shelf, sim_device: torch.device
) -> None:
    check_forwards(case["family"], sim_device, shelf, case["store"], case)
