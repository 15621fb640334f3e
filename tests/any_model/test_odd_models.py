"""Models of the tests' own: what differs from Wan must not matter, and no line knows of them."""

import threading
from collections import Counter

import pytest
import torch
from odd_models import DIM, ODD, odd

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.adapters.live import describe_module
from blockswap.errors import GeometryError, ModelError, SelectionError, StateError
from blockswap.plan.inputs.workload import Workload
from blockswap.predict import predict_module


def run(model: torch.nn.Module, device: torch.device, forwards: int = 3) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        return [
            model(torch.randn(3, DIM, generator=draw).to(device)).cpu() for _ in range(forwards)
        ]


@pytest.mark.parametrize("name", ODD)
def test_the_units_are_those_that_are_written_down(name: str) -> None:
    units = describe_module(odd(name)).layout.units
    assert Counter(unit.list_name for unit in units) == ODD[name][1]
    assert [unit.index for unit in units] == list(range(len(units)))


@pytest.mark.parametrize(
    ("device", "prefetch"), [("cpu", 0), ("sim-eager", 2), ("sim-lazy", 0)], indirect=["device"]
)
@pytest.mark.parametrize("name", ODD)
def test_an_odd_model_is_equal_to_the_last_bit(
    name: str, device: torch.device, prefetch: int
) -> None:
    expected = run(odd(name).to(device), device)
    args = BlockSwapArgs(blocks_to_swap=4, prefetch_blocks=prefetch)
    with swap_blocks(odd(name), args, device=device) as swap:
        assert len(swap.plan.streamed) == 4
        assert swap.plan.streamed[0].rpartition(".")[0] in swap.plan.sentences[0]
    model = odd(name)
    with swap_blocks(model, args, device=device):
        found = run(model, device)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_another_thread_may_run_it(device: torch.device) -> None:
    expected = run(odd("two lists").to(device), device)
    model, found = odd("two lists"), []
    with swap_blocks(model, BlockSwapArgs(blocks_to_swap=6), device=device):
        worker = threading.Thread(target=lambda: found.extend(run(model, device)))
        worker.start()
        worker.join()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_order_is_learnt_and_what_never_runs_is_not_brought_again(
    sim_device: torch.device,
) -> None:
    """Defined: zweite, erste, never. Run: erste, its first block once more, zweite."""
    model = odd("two lists")
    args = BlockSwapArgs(blocks_to_swap=9, prefetch_blocks=1)
    moved = []
    with swap_blocks(model, args, device=sim_device) as swap:
        for _ in range(5):
            before = _copied(swap)
            run(model, sim_device, forwards=1)
            moved.append(_copied(swap) - before)
        with torch.no_grad():
            idle = model.never[1](torch.ones(2, DIM).to(sim_device))["x"].cpu()
        sizes = {unit.name: unit.slab_bytes for unit in swap.plan.units}
    assert torch.equal(idle, _alone(sim_device))
    called = [name for name in sizes if not name.startswith("never")]
    again = sizes["inside.erste.0"]  # two others ran since
    assert moved[-1] == moved[-2] == sum(sizes[name] for name in called) + again


class ByItsOtherMethod(torch.nn.Module):
    """Its blocks never run as modules: nothing of torch's sees them begin."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks_of_mine = torch.nn.ModuleList(Step() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks_of_mine:
            x = block.step(x)
        return x


class Step(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(DIM, DIM), torch.nn.Linear(DIM, DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.step(x)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x))


def test_blocks_that_do_not_run_as_modules_are_told_by_name(sim_device: torch.device) -> None:
    model = ByItsOtherMethod().eval().requires_grad_(False)
    with swap_blocks(model, BlockSwapArgs(blocks="0"), device=sim_device):
        with pytest.raises(StateError, match=r"blocks_of_mine.0.* outside the run of its block"):
            run(model, sim_device, forwards=1)
    assert run(model, torch.device("cpu"), forwards=1)[0].isfinite().all()


def test_members_by_name_are_counted_in_their_order() -> None:
    named = BlockSwapArgs(blocks="by_name:1-2")
    with swap_blocks(odd("by name"), named, device="cpu") as swap:
        assert swap.plan.streamed == ("by_name.middle", "by_name.in")
    with pytest.raises(SelectionError, match="by_name has blocks 0-3"):
        swap_blocks(odd("by name"), BlockSwapArgs(blocks="by_name:4"), device="cpu")


def _alone(device: torch.device) -> torch.Tensor:
    with torch.no_grad():
        return odd("two lists").to(device).never[1](torch.ones(2, DIM).to(device))["x"].cpu()


def _copied(swap: object) -> int:
    return int(swap.measured().counters.copied_bytes)  # type: ignore[attr-defined]


def test_lists_are_named_in_blocks_and_in_block_lists(device: torch.device) -> None:
    expected = run(odd("two lists").to(device), device)
    model = odd("two lists")
    named = BlockSwapArgs(blocks="zweite:1-2,inside.erste:1")
    with swap_blocks(model, named, device=device) as swap:
        assert swap.plan.streamed == ("zweite.1", "zweite.2", "inside.erste.1")
        found = run(model, device)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    model = odd("two lists")
    only = BlockSwapArgs(block_lists=["inside.erste"], blocks_to_swap=99)
    with swap_blocks(model, only, device=device) as swap:
        assert len(swap.plan.units) == len(swap.plan.streamed) == 3
        found = run(model, device)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with pytest.raises(SelectionError, match=r"Invalid range: 'erste:0': the model has the lists"):
        swap_blocks(odd("two lists"), BlockSwapArgs(blocks="erste:0"), device=device)
    with pytest.raises(ModelError, match=r"block_lists names 'erste', which is not there"):
        swap_blocks(odd("two lists"), BlockSwapArgs(block_lists=["erste"]), device=device)


def test_a_wrapper_that_moves_whole_models_is_told_what_to_swap_instead(
    sim_device: torch.device,
) -> None:
    expected = run(odd("interleaved").to(sim_device), sim_device)
    wrapped = torch.nn.DataParallel(odd("interleaved"), device_ids=[sim_device])
    args = BlockSwapArgs(blocks_to_swap=4)
    with pytest.raises(
        ModelError, match=r"DataParallel .* give the model inside it, model\.module"
    ):
        swap_blocks(wrapped, args, device=sim_device)
    inside = wrapped.module.to("cpu")
    with swap_blocks(inside, args, device=sim_device):
        found = run(inside, sim_device)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("place", ["meta", "device"])
def test_a_model_that_a_device_map_scattered_is_told_so(
    place: str, sim_device: torch.device
) -> None:
    """accelerate refuses to move such a model: "call model.to('cpu')" would lead nowhere."""
    model = odd("backwards")
    model.layers[2].to(sim_device if place == "device" else "meta")
    model.hf_device_map = {"layers.2": "disk", "": "cpu"}
    words = r"layers\.2\..* device_map that keeps its parts on disk, cpu: load it without one"
    with pytest.raises(ModelError, match=words):
        swap_blocks(model, BlockSwapArgs(blocks_to_swap=4), device=sim_device)


def test_a_forward_that_was_followed_is_a_workload_of_any_model(sim_device: torch.device) -> None:
    """What a clip means is known of Wan's models; of others the inputs say it."""
    model = odd("two lists")
    args = BlockSwapArgs(vram_budget="4GiB")
    with pytest.raises(GeometryError, match=r"for TwoLists, and a clip .*predict_module\(model, "):
        swap_blocks(model, args, device=sim_device, workload=Workload(64, 64, 1))
    cost = predict_module(model, [torch.empty(3, DIM, device="meta")])
    with swap_blocks(model, args, device=sim_device, workload=cost) as swap:
        assert swap.plan.activation_bytes == cost.activation_bytes > 0
