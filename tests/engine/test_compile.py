"""torch.compile: equal output, one graph per block class, no break inside a block."""

from collections.abc import Iterator

import pytest
import torch
from cases import Shelf, forward, inputs, opened, reference, stores
from torch._dynamo.testing import CompileCounter

ARGS = {"blocks_to_swap": 5}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


@pytest.mark.parametrize("family", ["mini", "original"])
def test_compiled_model_is_bit_equal(family: str, device: torch.device, shelf: Shelf) -> None:
    for store in stores(device):
        torch._dynamo.reset()
        with opened(store, family, device, ARGS, shelf=shelf) as (model, _), torch.no_grad():
            compiled = torch.compile(model, backend="eager", dynamic=False)
            for shape in (0, 0, 1, 0):
                out = forward(compiled, family, device, shape=shape)
                assert torch.equal(out, reference(family, device, shape=shape)), (store, shape)


def test_model_compiled_before_it_is_swapped_is_bit_equal(device: torch.device) -> None:
    from cases import fresh

    from blockswap import swap_blocks

    model = fresh("mini")
    compiled = torch.compile(model, backend="eager")
    with swap_blocks(compiled, ARGS, device=device) as swap, torch.no_grad():
        assert swap.plan.streamed
        for _ in range(2):
            assert torch.equal(forward(compiled, "mini", device), reference("mini", device))
    assert not hasattr(model, "blockswap")


@pytest.mark.parametrize("family", ["mini", "original", "diffusers"])
def test_compiled_blocks_share_one_graph_without_breaks(
    family: str, device: torch.device, shelf: Shelf
) -> None:
    """`block.compile()` on every block: one frame, one graph, for all blocks and all slots."""
    for store in stores(device):
        torch._dynamo.reset()
        counter = CompileCounter()
        with opened(store, family, device, ARGS, shelf=shelf) as (model, _), torch.no_grad():
            for block in model.blocks:  # type: ignore[union-attr]
                block.compile(backend=counter)
            for _ in range(3):
                out = forward(model, family, device)
                assert torch.equal(out, reference(family, device)), store
        assert counter.frame_count == 1, store


def test_hooks_break_the_graph_around_a_block_and_never_in_it(
    device: torch.device, shelf: Shelf
) -> None:
    block = [
        "layer_norm",
        "linear",
        "gelu",
        "linear",
        "mul",
        "add",
    ]
    for store in stores(device):
        torch._dynamo.reset()
        with opened(store, "mini", device, ARGS, shelf=shelf) as (model, _), torch.no_grad():
            explained = torch._dynamo.explain(model)(**inputs("mini", device))
        graphs = [
            [node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"]
            for graph in explained.graphs
        ]
        of_blocks = [graph for graph in graphs if "layer_norm" in graph or "mul" in graph]
        assert of_blocks == [block], store  # one graph, the block whole, for all of them
