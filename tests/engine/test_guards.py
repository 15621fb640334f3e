"""What a swapped model refuses, and the one sentence with which it does."""

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from cases import Shelf, expect_refusal, forward, fresh, opened, reference, skeleton, stores
from torch import nn

from blockswap import BlockSwapArgs, BlockSwapError, open_transformer, swap_blocks
from blockswap.errors import ArgsError, DeviceError, ModelError, StateError

ARGS = {"blocks_to_swap": 4}


def works(model: nn.Module, device: torch.device) -> bool:
    """Whether the model still computes what it should."""
    with torch.no_grad():
        return torch.equal(forward(model, "mini", device), reference("mini", device))


def test_context_entered_twice_is_refused(device: torch.device) -> None:
    model = fresh("mini")
    with swap_blocks(model, ARGS, device=device) as swap:
        expect_refusal(swap.__enter__, StateError, "MiniWan", "second time", "in use")
        assert works(model, device)
    expect_refusal(swap.__enter__, StateError, "closed")


def test_swapping_a_swapped_model_is_refused(device: torch.device) -> None:
    model = fresh("mini")
    with swap_blocks(model, ARGS, device=device):
        expect_refusal(
            lambda: swap_blocks(model, ARGS, device=device), StateError, "MiniWan", "close"
        )
        assert works(model, device)


def test_moving_to_its_own_device_does_nothing(device: torch.device, shelf: Shelf) -> None:
    for store in stores(device):
        with opened(store, "mini", device, ARGS, shelf=shelf) as (model, _):
            tensors = {name: id(p) for name, p in model.named_parameters()}
            assert model.to(device) is model
            assert model.blocks[0].to(device) is model.blocks[0]
            assert model.to(device=device, dtype=torch.float32) is model
            assert {name: id(p) for name, p in model.named_parameters()} == tensors
            assert works(model, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_is_refused(dtype: torch.dtype, device: torch.device, shelf: Shelf) -> None:
    for store in stores(device):
        with opened(store, "mini", device, ARGS, shelf=shelf) as (model, _):
            name = str(dtype)
            expect_refusal(lambda: model.to(dtype), StateError, "MiniWan", name, "close the swap")
            expect_refusal(lambda: model.blocks[1].to(dtype), StateError, name)
            assert works(model, device)


def test_half_and_double_are_refused(device: torch.device) -> None:
    model = fresh("mini")
    with swap_blocks(model, ARGS, device=device):
        expect_refusal(model.half, StateError, "float16")
        expect_refusal(model.double, StateError, "float64")
        assert model.float() is model
        assert works(model, device)


def test_moving_back_to_the_cpu_is_refused(
    sim_device: torch.device, sim: Any, shelf: Shelf
) -> None:
    for store in stores(sim_device):
        with opened(store, "mini", sim_device, ARGS, shelf=shelf) as (model, _):
            expect_refusal(lambda: model.to("cpu"), StateError, "cpu", "sim", "close the swap")
            expect_refusal(model.cpu, StateError, "cpu")
            expect_refusal(model.blocks[0].cpu, StateError, "cpu")
            assert works(model, sim_device)


def test_moving_to_meta_is_refused(device: torch.device) -> None:
    model = fresh("mini")
    with swap_blocks(model, ARGS, device=device):
        expect_refusal(lambda: model.to("meta"), StateError, "meta")
        expect_refusal(lambda: model.to_empty(device="meta"), StateError, "meta")
        assert works(model, device)


def test_deepcopy_is_refused(device: torch.device, shelf: Shelf) -> None:
    for store in stores(device):
        with opened(store, "mini", device, ARGS, shelf=shelf) as (model, swap):
            expect_refusal(lambda: copy.deepcopy(model), StateError, "copy", "close the swap")
            expect_refusal(lambda: copy.deepcopy(model.blocks[0]), StateError, "close the swap")
            expect_refusal(lambda: copy.deepcopy(swap), StateError, "copy")
            assert works(model, device)
    assert isinstance(copy.deepcopy(fresh("mini")), nn.Module)


def test_pickle_is_refused(device: torch.device) -> None:
    model = fresh("mini")
    with swap_blocks(model, ARGS, device=device) as swap:
        expect_refusal(lambda: pickle.dumps(model), StateError, "pickled", "close")
        expect_refusal(lambda: pickle.dumps(swap), StateError, "pickled")
        assert works(model, device)
    assert pickle.dumps(model)


def test_state_dict_of_a_model_on_disk_is_refused_with_its_file(
    device: torch.device, shelf: Shelf
) -> None:
    with opened("disk", "mini", device, ARGS, shelf=shelf) as (model, _):
        expect_refusal(model.state_dict, StateError, "mini-fp32.safetensors", "copy that")
        for name, part in model.named_modules():
            if name.startswith("blocks.0") and any(True for _ in part.parameters()):
                expect_refusal(part.state_dict, StateError, "mini-fp32.safetensors", "copy that")
        assert works(model, device)


def test_forward_under_grad_is_refused(device: torch.device, shelf: Shelf) -> None:
    for store in stores(device):
        with opened(store, "mini", device, ARGS, shelf=shelf) as (model, _):
            expect_refusal(
                lambda: forward(model, "mini", device), StateError, "gradients", "no_grad"
            )
            assert works(model, device)


def test_forward_from_a_second_thread_at_once_is_refused(
    device: torch.device, shelf: Shelf
) -> None:
    for store in stores(device):
        with opened(store, "mini", device, ARGS, shelf=shelf) as (model, _):
            said: list[BaseException] = []

            def second(model: nn.Module = model, said: list[BaseException] = said) -> None:
                try:
                    works(model, device)
                except BaseException as error:
                    said.append(error)

            def in_between(*_: object) -> None:
                handle.remove()
                thread = threading.Thread(target=second)
                thread.start()
                thread.join(30)

            handle = model.blocks[2].ffn[0].register_forward_hook(in_between)  # type: ignore[index, union-attr]
            assert works(model, device), store
            assert len(said) == 1
            assert isinstance(said[0], StateError), said
            assert "another thread" in str(said[0])
            assert works(model, device), store


def test_forward_from_another_thread_afterwards_works(device: torch.device, shelf: Shelf) -> None:
    for store in stores(device):
        with opened(store, "mini", device, ARGS, shelf=shelf) as (model, _):
            assert works(model, device)
            results: list[bool] = []
            thread = threading.Thread(
                target=lambda results=results, model=model: results.append(works(model, device))
            )
            thread.start()
            thread.join(60)
            assert results == [True], store


def test_block_of_a_forward_that_a_dead_thread_left_behind_runs_again(
    device: torch.device,
) -> None:
    """KeyboardInterrupt skips torch's post hooks; here its thread is gone, too."""
    model = fresh("mini")
    with swap_blocks(model, ARGS, device=device):

        def doomed() -> None:
            model.blocks[2].fault = KeyboardInterrupt()  # type: ignore[index, union-attr]
            with pytest.raises(KeyboardInterrupt):
                works(model, device)

        thread = threading.Thread(target=doomed)
        thread.start()
        thread.join(60)
        model.blocks[2].fault = None  # type: ignore[index, union-attr]
        assert works(model, device)


def test_forward_after_close_of_an_opened_model_is_an_error(
    device: torch.device, shelf: Shelf
) -> None:
    with opened("disk", "mini", device, ARGS, shelf=shelf) as (model, _):
        block = model.blocks[0]  # type: ignore[index]
    with pytest.raises((BlockSwapError, RuntimeError, NotImplementedError)), torch.no_grad():
        block(torch.zeros(2, 16, device=device))


def test_unit_entered_after_drain_is_refused(device: torch.device, shelf: Shelf) -> None:
    """Closing in the middle of a forward is refused; the engine's own guard holds without that."""
    context = opened("disk", "mini", device, ARGS, shelf=shelf)
    model, swap = context.__enter__()
    drain = swap._streamer.drain
    handle = model.blocks[1].register_forward_hook(lambda *_: drain())  # type: ignore[index]
    with pytest.raises(StateError, match="after its swap was closed"), torch.no_grad():
        forward(model, "mini", device)
    handle.remove()
    swap.close()
    assert swap.closed


def test_parameter_replaced_while_swapped_is_refused_by_name(
    device: torch.device, shelf: Shelf
) -> None:
    for store in stores(device):
        if device.type == "cpu" and store == "ram":
            continue  # the module's own tensors are used where they lie
        with opened(store, "mini", device, {"blocks_to_swap": 5}, shelf=shelf) as (model, _):
            linear = model.blocks[3].ffn[0]  # type: ignore[index, union-attr]
            mine = linear.weight
            linear.weight = nn.Parameter(torch.zeros_like(mine, device="cpu"))
            with torch.no_grad():
                expect_refusal(
                    lambda: forward(model, "mini", device),
                    StateError,
                    "blocks.3.ffn.0.weight",
                    "changed by other code",
                )
            linear.weight = mine
            assert works(model, device), store


def test_model_on_the_device_already_is_refused(sim_device: torch.device, sim: Any) -> None:
    model = fresh("mini").to(sim_device)
    expect_refusal(
        lambda: swap_blocks(model, ARGS, device=sim_device), ModelError, "sim:0", "to('cpu')"
    )
    with torch.no_grad():
        assert torch.equal(forward(model, "mini", sim_device), reference("mini", sim_device))


def test_model_without_weights_is_refused(device: torch.device) -> None:
    model = skeleton("mini")
    assert model is not None
    expect_refusal(
        lambda: swap_blocks(model, ARGS, device=device), ModelError, "meta", "open_transformer"
    )


@pytest.mark.parametrize("name", ["cuda:0", "sim:7", "nonsense", "xpu"])
def test_device_that_is_not_there_is_refused(name: str, sim_device: torch.device) -> None:
    model = fresh("mini")
    expect_refusal(lambda: swap_blocks(model, ARGS, device=name), DeviceError, name)
    assert works(model, torch.device("cpu"))


def test_unknown_argument_is_refused_and_the_model_untouched(device: torch.device) -> None:
    model = fresh("mini")
    expect_refusal(
        lambda: swap_blocks(model, {"blocks_to_swapp": 3}, device=device), ArgsError, "to_swapp"
    )
    expect_refusal(
        lambda: swap_blocks(model, {"blocks": "3-9"}, device=device),
        ArgsError,
        "Invalid range: '3-9'",
    )
    assert works(model, torch.device("cpu"))


def test_arguments_may_be_left_out(device: torch.device, shelf: Shelf) -> None:
    model = fresh("mini")
    with swap_blocks(model, device=device) as swap:
        assert works(model, device)
        assert swap.plan.sentences
    opened_model = open_transformer(
        shelf.file("mini"), None, device=device, skeleton=skeleton("mini")
    )
    assert works(opened_model, device)
    opened_model.blockswap.close()  # type: ignore[union-attr, operator]


def test_neighbour_dictionary_is_accepted(device: torch.device) -> None:
    model = fresh("mini")
    with swap_blocks(
        model,
        {"blocks_to_swap": 20, "prefetch_blocks": 0, "use_non_blocking": False, "blocks": "1,3"},
        device=device,
    ) as swap:
        assert swap.plan.streamed == ("blocks.1", "blocks.3")
        assert works(model, device)


def test_debug_prints_a_line_for_each_block(
    device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fresh("mini")
    args = BlockSwapArgs(blocks_to_swap=3, block_swap_debug=True)
    with swap_blocks(model, args, device=device):
        assert works(model, device)
    lines = [line for line in capsys.readouterr().err.splitlines() if "blocks." in line]
    assert [f"blocks.{i}" in line for i, line in enumerate(lines)] == [True] * 5


def test_timeline_and_trace_are_written(device: torch.device, tmp_path: Any) -> None:
    model = fresh("mini")
    with swap_blocks(model, ARGS, device=device) as swap:
        assert works(model, device)
        swap.timeline(tmp_path / "timeline.png")
        swap.trace(tmp_path / "trace.json")
    assert (tmp_path / "timeline.png").stat().st_size > 1000
    assert b"blocks.2" in (tmp_path / "trace.json").read_bytes()
