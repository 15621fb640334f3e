"""Compiled blocks in pieces: what is compiled is a piece, and the call is ours before the graph's.

A block that was compiled runs one graph of the whole. In front of it stands a call that asks first
whether the block is cut; then it runs without that graph, and the functions of its pieces are
compiled in the same way, one graph for each size of a piece.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..adapters.compiled import IMPL, compile_context, note_context

_COMPILER = "_piece_compiler"


class PieceCompiler:
    """Compiles functions of a piece as a block was compiled, each once."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._made: dict[Any, Any] = {}

    def __call__(self, function: Any) -> Any:
        if function not in self._made:
            self._made[function] = self._context(function)
        return self._made[function]


def compiled_call(block: Any, is_cut: Callable[..., bool]) -> Any | None:
    """What stands in front of a block's graph; None where there is none, or ours is there.

    `is_cut` is asked with the arguments of each call.
    """
    graph = vars(block).get(IMPL)
    context = None if graph is None else compile_context(block)
    if context is None or compiler_of(block) is not None:
        return None

    @functools.wraps(graph)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not is_cut(*args, **kwargs):
            return graph(*args, **kwargs)
        return block._call_impl(*args, **kwargs)

    setattr(call, _COMPILER, PieceCompiler(context))
    return note_context(call, context)


def compiler_of(block: torch.nn.Module) -> PieceCompiler | None:
    """What compiles a block's pieces; None where the block is not compiled, or not through ours."""
    compiler = getattr(vars(block).get(IMPL), _COMPILER, None)
    return compiler if isinstance(compiler, PieceCompiler) else None
