"""torch.compile: equal output, one graph per block class, no break inside a block."""

import pytest
import torch
from cases import Shelf, forward, fresh, inputs, opened, reference
from torch._dynamo.testing import CompileCounter

from blockswap import swap_blocks

ARGS = {"blocks_to_swap": 5}
STORES = ("ram", "disk")
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def check_compiled_model(family: str, store: str, device: torch.device, shelf: Shelf) -> None:
    expected = [reference(family, device, shape=shape) for shape in (0, 1)]
    with opened(store, family, device, ARGS, shelf=shelf) as (model, _), torch.no_grad():
        compiled = torch.compile(model, backend="eager", dynamic=False)
        for shape in (0, 1, 0):
            out = forward(compiled, family, device, shape=shape)
            assert torch.equal(out, expected[shape]), shape


@pytest.mark.parametrize("store", STORES)
def test_compiled_model_is_bit_equal(store: str, device: torch.device, shelf: Shelf) -> None:
    check_compiled_model("mini", store, device, shelf)


@pytest.mark.parametrize("store", STORES)
def test_compiled_wan_model_is_bit_equal_on_the_cpu(store: str, shelf: Shelf) -> None:
    check_compiled_model("original", store, CPU, shelf)


def test_model_compiled_before_it_is_swapped_is_bit_equal(device: torch.device) -> None:
    expected = reference("mini", device)
    model = fresh("mini")
    compiled = torch.compile(model, backend="eager")
    with swap_blocks(compiled, ARGS, device=device) as swap, torch.no_grad():
        assert swap.plan.streamed
        for _ in range(2):
            assert torch.equal(forward(compiled, "mini", device), expected)
    assert not hasattr(model, "blockswap")


def check_compiled_blocks(family: str, store: str, device: torch.device, shelf: Shelf) -> None:
    expected = reference(family, device)
    counter = CompileCounter()
    with opened(store, family, device, ARGS, shelf=shelf) as (model, _), torch.no_grad():
        for block in model.blocks:  # type: ignore[union-attr]
            block.compile(backend=counter)
        for _ in range(3):
            assert torch.equal(forward(model, family, device), expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("store", STORES)
def test_compiled_blocks_share_one_graph(store: str, device: torch.device, shelf: Shelf) -> None:
    """`block.compile()` on every block: one graph, for all blocks and all slots."""
    check_compiled_blocks("mini", store, device, shelf)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("family", ["original", "diffusers"])
def test_compiled_wan_blocks_share_one_graph_on_the_cpu(
    family: str, store: str, shelf: Shelf
) -> None:
    check_compiled_blocks(family, store, CPU, shelf)


@pytest.mark.parametrize("store", STORES)
def test_hooks_break_the_graph_around_a_block_and_never_in_it(
    store: str, device: torch.device, shelf: Shelf
) -> None:
    block = ["layer_norm", "linear", "gelu", "linear", "mul", "add"]
    with opened(store, "mini", device, ARGS, shelf=shelf) as (model, _), torch.no_grad():
        explained = torch._dynamo.explain(model)(**inputs("mini", device))
    graphs = [
        [node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"]
        for graph in explained.graphs
    ]
    of_blocks = [graph for graph in graphs if "layer_norm" in graph or "mul" in graph]
    assert of_blocks == [block]  # one graph, the block whole, for all of them
