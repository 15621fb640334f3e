"""Models that are awkward in one way each: swapped equals unswapped, and everything comes back."""

from collections.abc import Iterator

import pytest
import torch
from awkward_models import AWKWARD, AwkwardModel, ScaledInt8, awkward
from cases import expect_refusal
from torch import nn

from blockswap import BlockSwapArgs, BlockSwapError, swap_blocks
from blockswap.store.leaves import leaf_tensors


def inputs(device: torch.device) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randn(n, 4, generator=draw).to(device) for n in (2, 5, 2)]


def outputs(model: nn.Module, device: torch.device) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(x).cpu() for x in inputs(device)]


def places(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def facts(tensor: torch.Tensor) -> list[tuple[object, ...]]:
    """What must come back: dtype, shape, stride, place and bytes of every leaf."""
    return [
        (leaf.dtype, leaf.shape, leaf.stride(), leaf.device, _bytes(leaf))
        for _, leaf in leaf_tensors(tensor)
    ]


def _bytes(leaf: torch.Tensor) -> bytes:
    flat = leaf.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_model_is_bit_equal(name: str, device: torch.device, prefetch: int) -> None:
    expected = outputs(awkward(name).to(device), device)
    model = awkward(name)
    blocks = len(dict.fromkeys(model.blocks))
    args = BlockSwapArgs(blocks_to_swap=blocks, prefetch_blocks=prefetch)
    with swap_blocks(model, args, device=device) as swap:
        assert swap.plan.streamed or name == "a single block"
        for number, (out, want) in enumerate(zip(outputs(model, device), expected, strict=True)):
            assert torch.equal(out, want), f"forward {number}"


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_model_comes_back_as_it_was(name: str, device: torch.device) -> None:
    model = awkward(name)
    before = {label: (tensor, facts(tensor)) for label, tensor in places(model)}
    changing = {label for label, _ in model.named_buffers()} if "changed" in name else set()
    replaced = "replaced in forward" in name
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=99), device=device):
        outputs(model, device)
    after = dict(places(model))
    assert list(after) == list(before)
    for label, (tensor, was) in before.items():
        if replaced and label.endswith("last"):
            assert after[label].device.type == "cpu"
            continue
        assert after[label] is tensor, label
        if label not in changing:
            assert facts(tensor) == was, label


def test_a_buffer_changed_while_swapped_keeps_its_new_value(device: torch.device) -> None:
    plain, swapped = awkward("a buffer changed in forward"), awkward("a buffer changed in forward")
    plain.to(device)
    outputs(plain, device)
    with swap_blocks(swapped, BlockSwapArgs(blocks_to_swap=99), device=device):
        outputs(swapped, device)
    assert int(swapped.blocks[0].seen) == 3
    for (name, mine), (_, theirs) in zip(
        swapped.named_buffers(), plain.named_buffers(), strict=True
    ):
        assert torch.equal(mine, theirs.cpu()), name


def test_a_buffer_replaced_while_swapped_keeps_its_new_value(device: torch.device) -> None:
    plain = awkward("a buffer replaced in forward").to(device)
    swapped = awkward("a buffer replaced in forward")
    outputs(plain, device)
    with swap_blocks(swapped, BlockSwapArgs(blocks_to_swap=99), device=device):
        outputs(swapped, device)
    for (name, mine), (_, theirs) in zip(
        swapped.named_buffers(), plain.named_buffers(), strict=True
    ):
        assert mine.device.type == "cpu", name
        assert torch.equal(mine, theirs.cpu()), name


def test_shared_tensor_and_buffers_stay_resident(sim_device: torch.device, sim: object) -> None:
    model = awkward("a tensor shared between blocks")
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=3), device=sim_device):
        assert model.blocks[0].shared.device == sim_device
        assert model.blocks[0].shared is model.blocks[2].shared
        assert model.blocks[0].own.weight.device.type == "cpu"


def test_tied_parameters_stay_tied_while_the_block_runs(device: torch.device) -> None:
    model = awkward("tied parameters in a block")
    seen: list[bool] = []

    def look(block: nn.Module, args: object, output: object) -> None:
        seen.append(block.a.weight is block.b.weight is block.again)

    for block in model.blocks:
        block.register_forward_hook(look)
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=99), device=device):
        outputs(model, device)
    assert seen == [True] * 12


def test_non_contiguous_weights_keep_their_strides_in_a_slot(device: torch.device) -> None:
    model = awkward("transposed weights")
    strides: list[tuple[int, ...]] = []
    for block in model.blocks:
        block.register_forward_pre_hook(
            lambda b, args: strides.append((*b.turned.stride(), *b.conv.stride()))
        )
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=99), device=device):
        for block in model.blocks:  # after the engine's own hook, so bound
            block.register_forward_pre_hook(
                lambda b, args: strides.append((*b.turned.stride(), *b.conv.stride()))
            )
        outputs(model, device)
    assert set(strides) == {(1, 32, 144, 1, 48, 16)}


def test_wrapper_subclass_stays_one_in_a_slot(device: torch.device) -> None:
    model = awkward("a wrapper tensor subclass")
    seen: list[tuple[type, torch.device]] = []

    def look(block: nn.Module, args: object, output: object) -> None:
        weight = block.inner.weight
        seen.append((type(weight), weight.data8.device))

    for block in model.blocks:
        block.register_forward_hook(look)
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=99), device=device):
        outputs(model, device)
    assert len(seen) == 12
    assert {device for _, device in seen} == {device}
    assert all(issubclass(kind, ScaledInt8) for kind, _ in seen)


class _Opaque(torch.Tensor):
    """A subclass with a state that torch's protocol does not show."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return super().__torch_function__(func, types, args, kwargs or {})


def test_opaque_tensor_subclass_is_refused_by_name(device: torch.device) -> None:
    model = awkward("unequal blocks")
    weight = model.blocks[1].inner[0].weight.detach().as_subclass(_Opaque)
    model.blocks[1].inner[0]._parameters["weight"] = weight
    expect_refusal(
        lambda: swap_blocks(model, BlockSwapArgs(blocks_to_swap=2), device=device),
        BlockSwapError,
        "blocks.1",
        "_Opaque",
    )


class _InNameOnly(torch.Tensor):
    """A subclass that adds nothing: its bytes mean what a plain tensor's bytes mean."""


def test_subclass_in_name_only_is_streamed_like_a_plain_tensor(device: torch.device) -> None:
    expected = outputs(awkward("unequal blocks").to(device), device)
    model = awkward("unequal blocks")
    linear = model.blocks[1].inner[0]
    linear._parameters["weight"] = linear.weight.detach().as_subclass(_InNameOnly)
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=4), device=device):
        for out, want in zip(outputs(model, device), expected, strict=True):
            assert torch.equal(out, want)


def test_sparse_weight_is_refused_by_name(device: torch.device) -> None:
    model = awkward("unequal blocks")
    model.blocks[2].inner[0].register_parameter(
        "mask", nn.Parameter(torch.eye(4).to_sparse(), requires_grad=False)
    )
    expect_refusal(
        lambda: swap_blocks(model, BlockSwapArgs(blocks_to_swap=2), device=device),
        BlockSwapError,
        "mask",
        "torch.sparse_coo",
    )


def test_model_without_blocks_is_refused(device: torch.device) -> None:
    text = expect_refusal(
        lambda: swap_blocks(nn.Linear(2, 2), None, device=device), BlockSwapError, "Linear"
    )
    assert "no transformer blocks" in text


def test_awkward_models_build_equal_weights_every_time() -> None:
    for name in AWKWARD:
        one, two = awkward(name), awkward(name)
        assert isinstance(one, AwkwardModel)
        assert [facts(t) for _, t in places(one)] == [facts(t) for _, t in places(two)]
