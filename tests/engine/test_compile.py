"""torch.compile: equal output, one graph per block class, no break inside a block."""

import pytest
import torch
from cases import Shelf, forward, inputs, opened, reference, stores
from torch._dynamo.testing import CompileCounter

ARGS = {"blocks_to_swap": 5}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("family", ["mini", "original"])
def test_compiled_model_is_bit_equal(
    family: str, device: torch.device, shelf: Shelf
) -> None:
    for store in stores(device):
        torch._dynamo.reset()
        with opened(store, family, device, ARGS, shelf=shelf) as (model, _), torch.no_grad():
            compiled = torch.compile(model, backend="eager")
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
    for store in stores(device):
        torch._dynamo.reset()
        with opened(store, "mini", device, ARGS, shelf=shelf) as (model, _), torch.no_grad():
            explained = torch._dynamo.explain(model)(**inputs("mini", device))
            graphs = [
                [node.target for node in graph.graph.nodes if node.op == "call_function"]
                for graph in explained.graphs
            ]
        ffn = [graph for graph in graphs if torch.nn.functional.layer_norm in graph]
        assert len(ffn) == len(model.blocks), store  # type: ignore[arg-type]
        for graph in ffn:
            assert graph.count(torch._C._nn.linear) == 2, store  # the block whole, nothing else
