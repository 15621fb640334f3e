"""Compiled blocks in pieces: the graph is the piece, of two sizes at most, and nothing is written
into what a block is handed."""

from itertools import product
from typing import Any

import pytest
import torch
from clips import FAMILIES, clip, given, loaded, more, run, some_of
from torch._dynamo.testing import CompileCounter

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.pieces import Pieces, why_never

EACH = 2  # functions of a piece: keys and values, and the rest of the block
SIZES = {
    "one size": ({"frames": 29}, 64, 1),  # 384 tokens
    "a last one of its own": ({}, 100, 2),  # 240
    "4 x 64 + 1": ({"width": 16, "height": 16, "frames": 1025}, 64, 2),
    "batch-2": ({"batch": 2}, 100, 2),
}


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def compiled(model: Any, **how: Any) -> CompileCounter:
    """As diffusers compiles blocks; a counter in the place of Inductor."""
    counter = CompileCounter()
    model.compile_repeated_blocks(backend=counter, fullgraph=True, **how)
    return counter


CASES = [
    *product(FAMILIES, ["a last one of its own"], ["before", "after"]),
    *product(["t2v"], SIZES, ["before", "after"]),
]
IN_CI = [(family, "a last one of its own", "after") for family in ("t2v", "vace")]


@pytest.mark.parametrize(("family", "size", "when"), some_of(CASES, IN_CI))
def test_the_graph_is_the_piece(family: str, size: str, when: str) -> None:
    changes, tokens, sizes = SIZES[size]
    workload = clip(family, dtype="float32", **changes)
    model, inputs = loaded(family, workload), given(family, workload)
    whole, graphs = run(model, inputs), 0
    said: list[str] = []
    counter = compiled(model) if when == "before" else None
    pieces = Pieces(model, tokens, said.append)
    assert why_never(model) is None
    counter = counter or compiled(model)
    for _ in range(2):
        assert torch.allclose(run(model, inputs), whole, rtol=1e-4, atol=1e-4)
        graphs = counter.frame_count
        if family == "vace":  # two classes of blocks, which share some of them
            assert EACH * sizes < graphs <= EACH * sizes * 2
        else:
            assert graphs == EACH * sizes, "one graph for each function and size"
    assert not said
    pieces.remove()
    assert torch.allclose(run(model, inputs), whole, rtol=1e-4, atol=1e-4)
    assert counter.frame_count > graphs, "the whole has a graph of its own"
    assert "forward" not in vars(model.blocks[0])


@more
def test_one_graph_where_sizes_are_dynamic() -> None:
    workload = clip("t2v", dtype="float32")
    model, inputs = loaded("t2v", workload), given("t2v", workload)
    whole = run(model, inputs)
    counter = compiled(model, dynamic=True)
    pieces = Pieces(model, 100, print)
    assert torch.allclose(run(model, inputs), whole, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == EACH
    pieces.remove()


def test_a_clip_that_is_not_cut_runs_the_wholes_graph() -> None:
    workload = clip("t2v", dtype="float32", width=16, height=16, frames=129)  # 33 tokens
    model, inputs = loaded("t2v", workload), given("t2v", workload)
    whole = run(model, inputs)
    counter = compiled(model)
    pieces = Pieces(model, 64, print)
    assert torch.equal(run(model, inputs), whole)
    assert counter.frame_count == 1
    pieces.remove()


@more
def test_compiled_blocks_write_into_nothing_that_they_are_handed() -> None:
    workload = clip("vace", dtype="float32")
    model, inputs = loaded("vace", workload), given("vace", workload)
    compiled(model)
    pieces = Pieces(model, 64, print)
    kept: list[torch.Tensor] = []
    copies: list[torch.Tensor] = []
    run_compiled = pieces.family.run_compiled

    def watch(block: Any, given: dict[str, Any], *more: Any) -> Any:
        for name in ("hidden_states", "control_hidden_states"):
            if name in given:
                kept.append(given[name])
                copies.append(given[name].clone())
        out = run_compiled(block, given, *more)
        assert all(map(torch.equal, kept[-2:], copies[-2:]))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces.family, "run_compiled", watch)
        run(model, inputs)
    assert len(kept) == len(model.blocks) + 2 * len(model.vace_blocks)
    pieces.remove()


@pytest.mark.parametrize("when", some_of(["before", "after"], ["before"]))
def test_streamed_blocks_share_the_graphs_of_a_piece(when: str) -> None:
    workload = clip("t2v", dtype="float32")
    model, inputs = loaded("t2v", workload), given("t2v", workload)
    whole = run(model, inputs)
    counter = compiled(model) if when == "before" else None
    with swap_blocks(model, BlockSwapArgs(blocks="0-2", chunk_tokens=100), device="cpu") as swap:
        counter = counter or compiled(model)
        for _ in range(3):
            assert torch.allclose(run(model, inputs), whole, rtol=1e-4, atol=1e-4)
        assert counter.frame_count == 2 * EACH
        assert "in pieces of" in swap.status_line()
        assert "runs whole" not in str(swap.report())


@more
def test_inductor_is_as_near_as_it_is_to_the_whole() -> None:
    workload = clip("t2v", dtype="float32")
    model, inputs = loaded("t2v", workload), given("t2v", workload)
    whole = run(model, inputs)
    model.compile_repeated_blocks(fullgraph=True)
    pieces = Pieces(model, 100, print)
    assert torch.allclose(run(model, inputs), whole, rtol=1e-4, atol=1e-4)
    pieces.remove()
