"""Any execution order is correct: skipped, repeated, reversed, alone, interrupted, switched."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cases import Shelf, forward, fresh, inputs, opened, reference, stores
from torch import nn

ORDERS = {
    "skipped": [(0, 1, 2, 3, 4), (0, 2, 4), (1, 3), (0, 1, 2, 3, 4)],
    "repeated": [(0, 1, 1, 1, 2, 2, 3, 4, 4), (0, 0, 0, 0), (2, 3, 2, 3, 2, 3)],
    "reversed": [(4, 3, 2, 1, 0), (4, 3, 2, 1, 0), (0, 1, 2, 3, 4)],
    "alone": [(3,), (3,), (0,), (4,), (1,)],
    "learnt anew": [(0, 2, 4, 1, 3)] * 3 + [(0, 1, 2, 3, 4)] * 2,
}


def expected_of(device: torch.device, order: Sequence[int]) -> torch.Tensor:
    model = fresh("mini").to(device)
    model.order = tuple(order)  # type: ignore[assignment]
    with torch.no_grad():
        return forward(model, "mini", device)


def run_blocks(model: nn.Module, device: torch.device, order: Sequence[int]) -> torch.Tensor:
    """Calls blocks by themselves, with no forward of the whole model around them."""
    x = torch.linspace(-2, 2, 32).reshape(2, 16).to(device)
    for index in order:
        x = model.blocks[index](x)  # type: ignore[index]
    return x.cpu()


@pytest.mark.parametrize("prefetch", [0, 1, 2])
@pytest.mark.parametrize("name", ORDERS)
def test_forward_in_any_order_is_bit_equal(
    name: str, prefetch: int, device: torch.device, shelf: Shelf
) -> None:
    expected = [expected_of(device, order) for order in ORDERS[name]]
    for store in stores(device):
        args = {"blocks": "0-1,3-4", "prefetch_blocks": prefetch}
        with opened(store, "mini", device, args, shelf=shelf) as (model, _):
            for order, want in zip(ORDERS[name], expected, strict=True):
                model.order = order  # type: ignore[assignment]
                with torch.no_grad():
                    out = forward(model, "mini", device)
                assert torch.equal(out, want), (store, order)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_run_alone_in_random_order_are_bit_equal(
    seed: int, device: torch.device, shelf: Shelf
) -> None:
    draw = random.Random(seed)
    orders = [[draw.randrange(5) for _ in range(draw.randrange(1, 12))] for _ in range(6)]
    plain = fresh("mini").to(device)
    with torch.no_grad():
        expected = [run_blocks(plain, device, order) for order in orders]
    for store in stores(device):
        args = {"blocks_to_swap": 4, "prefetch_blocks": seed + 1}
        with opened(store, "mini", device, args, shelf=shelf) as (model, _):
            for order, want in zip(orders, expected, strict=True):
                with torch.inference_mode():
                    out = run_blocks(model, device, order)
                assert torch.equal(out, want), (store, order)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_forward_that_raises_in_a_block_runs_again(
    error: type[BaseException], index: int, device: torch.device, shelf: Shelf
) -> None:
    expected = reference("mini", device)
    for store in stores(device):
        with opened(store, "mini", device, {"blocks_to_swap": 5}, shelf=shelf) as (model, _):
            for _ in range(2):
                model.blocks[index].fault = error  # type: ignore[index, union-attr]
                with pytest.raises(error), torch.no_grad():
                    forward(model, "mini", device)
                model.blocks[index].fault = None  # type: ignore[index, union-attr]
                with torch.no_grad():
                    assert torch.equal(forward(model, "mini", device), expected), store


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_close_after_a_forward_that_raised_restores_everything(
    error: type[BaseException], device: torch.device, shelf: Shelf
) -> None:
    args = {"blocks_to_swap": 5}
    with opened("ram", "mini", device, args, shelf=shelf) as (model, _):
        before = {name: id(p) for name, p in model.named_parameters()}
        model.blocks[1].fault = error  # type: ignore[index, union-attr]
        with pytest.raises(error), torch.no_grad():
            forward(model, "mini", device)
    for name, p in fresh("mini").named_parameters():
        mine = model.get_parameter(name)
        assert torch.equal(mine, p), name
        assert mine.device.type == "cpu"
        if name.startswith("blocks"):
            assert id(mine) == before[name]


@pytest.mark.parametrize("family", ["original", "diffusers"])
def test_autocast_switched_on_and_off_is_bit_equal(
    family: str, device: torch.device, shelf: Shelf
) -> None:
    expected = {on: reference(family, device, autocast=on) for on in (False, True)}
    assert not torch.equal(expected[False], expected[True])
    for store in stores(device):
        args = {"blocks_to_swap": 5, "prefetch_blocks": 1}
        with opened(store, family, device, args, shelf=shelf) as (model, _):
            for on in (True, True, False, True):
                with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=on):
                    out = forward(model, family, device)
                assert torch.equal(out, expected[on]), (store, on)


def test_two_forwards_under_one_autocast_do_not_share_cast_weights(
    device: torch.device, shelf: Shelf
) -> None:
    """Autocast keeps the cast of a leaf that requires grad until its outermost context ends."""
    first, second = (reference("mini", device, shape=i, autocast=True) for i in (0, 1))
    for store in stores(device):
        args = {"blocks_to_swap": 5, "prefetch_blocks": 0}
        with (
            opened(store, "mini", device, args, shelf=shelf) as (model, _),
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16),
        ):
            assert torch.equal(forward(model, "mini", device, shape=0), first), store
            assert torch.equal(forward(model, "mini", device, shape=1), second), store


def test_switching_between_no_grad_and_inference_mode_is_bit_equal(
    device: torch.device, shelf: Shelf
) -> None:
    expected = reference("mini", device)
    for store in stores(device):
        with opened(store, "mini", device, {"blocks_to_swap": 4}, shelf=shelf) as (model, _):
            for mode in (torch.no_grad, torch.inference_mode, torch.no_grad, torch.inference_mode):
                with mode():
                    assert torch.equal(forward(model, "mini", device), expected), (store, mode)


def test_opening_inside_inference_mode_serves_forwards_outside_it(
    device: torch.device, shelf: Shelf
) -> None:
    expected = reference("mini", device)
    for store in stores(device):
        with torch.inference_mode():
            context = opened(store, "mini", device, {"blocks_to_swap": 4}, shelf=shelf)
            model, _ = context.__enter__()
            assert torch.equal(forward(model, "mini", device), expected), store
        with torch.no_grad():
            assert torch.equal(forward(model, "mini", device), expected), store
        with torch.inference_mode():
            context.__exit__(None, None, None)


def test_model_built_inside_inference_mode_is_bit_equal(device: torch.device) -> None:
    from blockswap import BlockSwapArgs, swap_blocks

    expected = reference("mini", device)
    with torch.inference_mode():
        model = fresh("mini")
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
    assert model.head.weight.is_inference()  # type: ignore[union-attr]
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=4), device=device):
        for mode in (torch.inference_mode, torch.no_grad):
            with mode():
                assert torch.equal(forward(model, "mini", device), expected)
    assert torch.equal(model.head.weight, fresh("mini").head.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["original-i2v", "diffusers"])
def test_two_passes_a_step_with_different_conditions_are_bit_equal(
    family: str, device: torch.device, shelf: Shelf
) -> None:
    """Classifier-free guidance: conditional and unconditional pass in turn."""

    def passes(model: nn.Module) -> list[torch.Tensor]:
        outs = []
        key = "encoder_hidden_states" if family == "diffusers" else "context"
        for step in range(2):
            for scale in (1.0, 0.0):
                given: dict[str, Any] = inputs(family, device)
                given[key] = given[key] * scale + step
                out = model(**given)
                outs.append((out[0] if family == "diffusers" else out).cpu())
        return outs

    with torch.no_grad():
        expected = passes(fresh(family).to(device))
    for store in stores(device):
        args = {"blocks_to_swap": 6, "offload_txt_emb": True, "offload_img_emb": True}
        with opened(store, family, device, args, shelf=shelf) as (model, _), torch.no_grad():
            for number, (out, want) in enumerate(zip(passes(model), expected, strict=True)):
                assert torch.equal(out, want), (store, number)


def test_two_swapped_models_in_turn_are_bit_equal(device: torch.device, shelf: Shelf) -> None:
    """Two experts: each has its own slots, and neither disturbs the other."""
    expected = {dtype: reference("mini", device, dtype=dtype) for dtype in ("fp32", "bf16")}
    for store in stores(device):
        args = {"blocks_to_swap": 5}
        with (
            opened(store, "mini", device, args, shelf=shelf) as (high, _),
            opened(store, "mini", device, args, dtype="bf16", shelf=shelf) as (low, _),
            torch.no_grad(),
        ):
            for _ in range(2):
                assert torch.equal(forward(high, "mini", device), expected["fp32"]), store
                assert torch.equal(forward(low, "mini", device), expected["bf16"]), store


def test_forwards_on_changing_streams_are_bit_equal(
    sim_device: torch.device, sim: Any, shelf: Shelf
) -> None:
    """The compute stream is the one that is current when a block is entered."""
    expected = reference("mini", sim_device)
    for store in stores(sim_device):
        streams = [torch.Stream(sim_device) for _ in range(2)]
        given = inputs("mini", sim_device)
        torch.accelerator.synchronize()
        args = {"blocks_to_swap": 5, "prefetch_blocks": 1}
        with opened(store, "mini", sim_device, args, shelf=shelf) as (model, _), torch.no_grad():
            for stream in (*streams, *streams):
                with stream:
                    out = model(**given)
                    assert torch.equal(out.cpu(), expected), store
