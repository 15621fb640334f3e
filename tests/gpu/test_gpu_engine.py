"""On a real accelerator: equal to the last bit, exactly the planned memory, sound after a fault."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
import torch
from heavy import HeavyModel, Scale, hidden_for
from safetensors.torch import save_file

from blockswap import BlockSwapArgs, Swap, open_transformer, swap_blocks

pytestmark = pytest.mark.gpu
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def wan(dtype: torch.dtype) -> torch.nn.Module:
    """A small Wan transformer, the same every time; its rope tables stay as computed."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(3)
    model: torch.nn.Module = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=128,
        in_channels=16,
        out_channels=16,
        text_dim=64,
        freq_dim=64,
        ffn_dim=512,
        num_layers=8,
    )
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model.eval()


def inputs(device: torch.device, dtype: torch.dtype, frames: int = 3) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(frames)
    return {
        "hidden_states": torch.randn(1, 16, frames, 16, 16, generator=made).to(device, dtype),
        "timestep": torch.tensor([500], device=device),
        "encoder_hidden_states": torch.randn(1, 12, 64, generator=made).to(device, dtype),
    }


def run(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(**batch, return_dict=False)[0]
    return output


@contextmanager
def opened(
    store: str, dtype: torch.dtype, args: BlockSwapArgs, device: torch.device, folder: Path
) -> Iterator[torch.nn.Module]:
    """The small Wan transformer, streamed from RAM or from a file."""
    model = wan(dtype)
    if store == "ram":
        with swap_blocks(model, args, device=device):
            yield model
        return
    file = folder / "wan.safetensors"
    save_file(model.state_dict(), file)
    streamed = open_transformer(file, args, device=device)
    try:
        yield streamed
    finally:
        cast(Swap, streamed.blockswap).close()


@pytest.mark.parametrize("ahead", [0, 1, 2, 3])
@pytest.mark.parametrize("store", ["ram", "disk"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swapped_equals_resident_to_the_last_bit(
    accelerator: torch.device, tmp_path: Path, dtype: torch.dtype, store: str, ahead: int
) -> None:
    resident = wan(dtype).to(accelerator)
    args = BlockSwapArgs(blocks_to_swap=6, prefetch_blocks=ahead)
    with opened(store, dtype, args, accelerator, tmp_path) as swapped:
        for frames in (3, 3, 2, 5):
            batch = inputs(accelerator, dtype, frames)
            assert torch.equal(run(swapped, batch), run(resident, batch))


def test_swapped_equals_resident_under_autocast(accelerator: torch.device) -> None:
    resident, batch = wan(torch.float32).to(accelerator), inputs(accelerator, torch.float32)
    model = wan(torch.float32)
    with (
        torch.autocast(accelerator.type, dtype=torch.bfloat16),
        swap_blocks(model, BlockSwapArgs(blocks_to_swap=8), device=accelerator),
    ):
        for _ in range(3):
            assert torch.equal(run(model, batch), run(resident, batch))


def test_many_forwards_without_a_pause_stay_equal(accelerator: torch.device, scale: Scale) -> None:
    resident, hidden = HeavyModel(scale).to(accelerator), hidden_for(scale, accelerator)
    model = HeavyModel(scale)
    with torch.no_grad():
        expected = resident(hidden)
        with swap_blocks(model, BlockSwapArgs(blocks_to_swap=scale.blocks), device=accelerator):
            outputs = [model(hidden) for _ in range(30)]
        assert all(torch.equal(output, expected) for output in outputs)


def test_a_forward_on_another_stream_stays_equal(accelerator: torch.device, scale: Scale) -> None:
    resident, hidden = HeavyModel(scale).to(accelerator), hidden_for(scale, accelerator)
    model, other = HeavyModel(scale), torch.Stream(accelerator)
    with torch.no_grad():
        expected = resident(hidden)
        torch.accelerator.synchronize()
        with swap_blocks(model, BlockSwapArgs(blocks_to_swap=scale.blocks), device=accelerator):
            outputs = [model(hidden)]
            torch.accelerator.synchronize()
            with other:
                outputs.append(model(hidden))
                other.synchronize()
            outputs.append(model(hidden))
            torch.accelerator.synchronize()
    assert all(torch.equal(output, expected) for output in outputs)


def test_weights_and_slots_take_exactly_the_planned_bytes(
    accelerator: torch.device, scale: Scale, tell: Callable[[str], None]
) -> None:
    model = HeavyModel(scale)
    torch.accelerator.synchronize()
    before = torch.accelerator.memory_allocated()
    args = BlockSwapArgs(blocks_to_swap=scale.blocks - 1)
    with swap_blocks(model, args, device=accelerator) as swap:
        held = torch.accelerator.memory_allocated() - before
        planned = swap.plan.device_bytes
    tell(f"device memory for weights and slots: {held} bytes, {planned} planned")
    assert held == planned
    assert torch.accelerator.memory_allocated() == before


def test_the_steady_state_allocates_what_the_resident_model_does(
    accelerator: torch.device, scale: Scale
) -> None:
    hidden = hidden_for(scale, accelerator)

    def allocations(model: torch.nn.Module) -> int:
        for _ in range(2):
            model(hidden)
        before = torch.accelerator.memory_stats().get("allocation.all.allocated")
        if before is None:
            pytest.skip(f"{accelerator} does not count allocations")
        for _ in range(3):
            model(hidden)
        count: int = torch.accelerator.memory_stats()["allocation.all.allocated"] - before
        return count

    model = HeavyModel(scale)
    with torch.no_grad():
        resident = allocations(HeavyModel(scale).to(accelerator))
        with swap_blocks(model, BlockSwapArgs(blocks_to_swap=scale.blocks), device=accelerator):
            assert allocations(model) == resident


def test_a_forward_after_one_that_failed_is_equal(accelerator: torch.device, scale: Scale) -> None:
    model, hidden = HeavyModel(scale), hidden_for(scale, accelerator)
    with torch.no_grad():
        expected = HeavyModel(scale).to(accelerator)(hidden)
        with swap_blocks(model, BlockSwapArgs(blocks_to_swap=scale.blocks), device=accelerator):
            with pytest.raises(RuntimeError):
                model(hidden[:, :-1])  # the first block's product does not fit
            assert torch.equal(model(hidden), expected)


def test_closing_gives_back_the_model_and_all_memory(
    accelerator: torch.device, scale: Scale
) -> None:
    model = HeavyModel(scale)
    weights = list(model.parameters())
    values = [weight.clone() for weight in weights]
    before = torch.accelerator.memory_allocated()
    with torch.no_grad():
        for _ in range(5):
            with swap_blocks(model, BlockSwapArgs(blocks_to_swap=4), device=accelerator):
                model(hidden_for(scale, accelerator))
    torch.accelerator.synchronize()
    assert torch.accelerator.memory_allocated() == before
    assert all(now is weight for now, weight in zip(model.parameters(), weights, strict=True))
    assert all(torch.equal(now, value) for now, value in zip(weights, values, strict=True))
