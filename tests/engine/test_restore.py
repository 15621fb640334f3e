"""After `close()` a model is what it was: objects, values, strides, hooks, memory."""

import gc
import threading
from typing import Any

import pytest
import torch
from cases import Shelf, forward, fresh, opened, reference, stores
from torch import nn

from blockswap import BlockSwapArgs, open_transformer, swap_blocks

ARGS = {"blocks_to_swap": 4, "offload_txt_emb": True}
FAMILIES = ("mini", "original-vace", "diffusers-vace")


def hooks_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """How many hooks of each kind hang on every module."""
    return {
        name: (
            len(module._forward_pre_hooks),
            len(module._forward_hooks),
            len(module._forward_hooks_always_called),
            len(module._state_dict_pre_hooks),
        )
        for name, module in model.named_modules()
    }


def attributes_of(model: nn.Module) -> dict[str, list[str]]:
    """The names in every module's own dictionary."""
    return {name: sorted(vars(module)) for name, module in model.named_modules()}


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters(remove_duplicate=False))
    return named | dict(model.named_buffers(remove_duplicate=False))


@pytest.mark.parametrize("dtype", ["fp32", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_close_restores_objects_values_dtypes_and_strides(
    family: str, dtype: str, device: torch.device
) -> None:
    model = fresh(family, dtype)
    before = {
        name: (tensor, tensor.detach().clone(), tensor.stride(), tensor.requires_grad)
        for name, tensor in tensors_of(model).items()
    }
    with swap_blocks(model, BlockSwapArgs(**ARGS), device=device), torch.no_grad():
        forward(model, family, device)
    after = tensors_of(model)
    assert list(after) == list(before)
    for name, (tensor, values, stride, requires_grad) in before.items():
        assert after[name] is tensor, name
        assert torch.equal(tensor, values), name
        assert (tensor.dtype, tensor.stride()) == (values.dtype, stride), name
        assert tensor.requires_grad is requires_grad, name
        assert tensor.device.type == "cpu", name
        assert not tensor.is_pinned(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_close_takes_away_every_hook_and_attribute(family: str, device: torch.device) -> None:
    model = fresh(family)
    before = hooks_of(model), attributes_of(model)
    swap = swap_blocks(model, BlockSwapArgs(**ARGS), device=device)
    assert (hooks_of(model), attributes_of(model)) != before
    assert model.blockswap is swap
    swap.close()
    assert hooks_of(model) == before[0]
    assert attributes_of(model) == before[1]


def test_close_gives_back_a_model_that_can_be_trained(device: torch.device) -> None:
    model = fresh("mini")
    with swap_blocks(model, BlockSwapArgs(**ARGS), device=device), torch.no_grad():
        forward(model, "mini", device)
    forward(model, "mini", torch.device("cpu")).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_closed_model_moves_and_casts_again(device: torch.device) -> None:
    model = fresh("mini")
    with swap_blocks(model, BlockSwapArgs(**ARGS), device=device):
        pass
    model.to(device).to(torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(forward(model, "mini", device), reference("mini", device, dtype="bf16"))


def test_closing_twice_does_nothing(device: torch.device) -> None:
    model = fresh("mini")
    swap = swap_blocks(model, BlockSwapArgs(**ARGS), device=device)
    swap.close()
    before = tensors_of(model)
    swap.close()
    assert all(tensor is before[name] for name, tensor in tensors_of(model).items())


def test_model_can_be_swapped_again_after_close(device: torch.device) -> None:
    model = fresh("mini")
    for count in (5, 2, 0, 5):
        with swap_blocks(model, BlockSwapArgs(blocks_to_swap=count), device=device):
            with torch.no_grad():
                assert torch.equal(forward(model, "mini", device), reference("mini", device))


def test_report_is_still_there_after_close(device: torch.device) -> None:
    model = fresh("mini")
    with swap_blocks(model, BlockSwapArgs(**ARGS), device=device) as swap, torch.no_grad():
        forward(model, "mini", device)
    assert swap.measured().counters.forwards == 1
    assert "block swap on" in str(swap.report())


def test_streamed_weights_show_their_values_between_forwards(device: torch.device) -> None:
    """RAM store: an unbound parameter is its host view, and the same object all the time."""
    model = fresh("mini")
    objects = dict(model.named_parameters())
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=5), device=device), torch.no_grad():
        for _ in range(2):
            forward(model, "mini", device)
            for name, value in fresh("mini").named_parameters():
                mine = model.get_parameter(name)
                assert torch.equal(mine.cpu(), value), name
                if name.startswith("blocks."):
                    assert mine is objects[name], name


def test_streamed_weights_from_disk_are_meta_between_forwards(
    device: torch.device, shelf: Shelf
) -> None:
    with opened("disk", "mini", device, {"blocks_to_swap": 5}, shelf=shelf) as (model, _):
        for _ in range(2):
            with torch.no_grad():
                forward(model, "mini", device)
            places = {name: p.device.type for name, p in model.named_parameters()}
            for name, place in places.items():
                assert place == ("meta" if name.startswith("blocks.") else device.type), name


def test_opened_model_has_no_weights_after_close(device: torch.device, shelf: Shelf) -> None:
    for store in ("disk",) if device.type == "cpu" else ("disk", "file-ram"):
        with opened(store, "diffusers", device, {"blocks_to_swap": 4}, shelf=shelf) as (model, _):
            pass
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert not hasattr(model, "blockswap")


def test_every_byte_is_returned_at_close_without_a_garbage_collection(
    sim_device: torch.device, sim: Any, shelf: Shelf
) -> None:
    for store in stores(sim_device):
        gc.collect()
        before = sim.counters()
        gc.disable()
        try:
            with opened(store, "mini", sim_device, ARGS, shelf=shelf) as (model, swap):
                with torch.no_grad():
                    for _ in range(2):
                        forward(model, "mini", sim_device)
            after = sim.counters()
            assert after.device_bytes == before.device_bytes, store
            assert after.pinned_bytes == before.pinned_bytes == 0, store
            assert swap.closed
        finally:
            gc.enable()


def test_close_in_the_middle_of_reads_ends_every_reader(device: torch.device, shelf: Shelf) -> None:
    before = set(threading.enumerate())
    for _ in range(3):
        args = {"blocks_to_swap": 5}
        with opened("disk", "mini", device, args, shelf=shelf) as (model, _), torch.no_grad():
            model.blocks[0](torch.zeros(2, 16, device=device))
            assert set(threading.enumerate()) - before
    assert set(threading.enumerate()) - before == set()


def test_state_dict_of_a_swapped_model_has_the_right_bytes(device: torch.device) -> None:
    for family in FAMILIES:
        model = fresh(family, "mixed")
        with swap_blocks(model, BlockSwapArgs(**ARGS), device=device), torch.no_grad():
            forward(model, family, device)
            saved = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        expected = fresh(family, "mixed").state_dict()
        assert list(saved) == list(expected)
        for name, tensor in expected.items():
            assert saved[name].dtype == tensor.dtype, name
            assert torch.equal(saved[name], tensor), name


def test_skeleton_is_left_as_it_was_when_opening_fails(
    device: torch.device, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blockswap.swap.opening import found_model as checkpoint

    def failing(self: Any) -> None:
        raise MemoryError("no residents today")

    monkeypatch.setattr(checkpoint.Opening, "load_residents", failing)
    skeleton = fresh("mini").to_empty(device="meta")
    before = hooks_of(skeleton), attributes_of(skeleton)
    with pytest.raises(MemoryError):
        open_transformer(
            shelf.file("mini"), {"blocks_to_swap": 3}, device=device, skeleton=skeleton
        )
    assert (hooks_of(skeleton), attributes_of(skeleton)) == before
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
