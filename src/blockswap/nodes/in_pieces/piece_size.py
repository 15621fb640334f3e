"""Whether a sampled forward runs in pieces of tokens, and of how many: what fits in free memory.

The host loads weights before it knows the forward; what is free when the forward begins is what
activations have. So each clip is decided on then, once: whole where that fits, else the largest
pieces that do. Who asked for a size gets that one.
"""

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ...errors import ModelError
from ...pieces import Family, Pieces, why_never
from ...plan.inputs.margin import MARGIN
from ...plan.inputs.pieces import sizes_below
from ...plan.inputs.workload import KernelSet
from ...predict import predict_module
from ...predict.shell import shell_of
from ...swap import Swap
from ...units import format_bytes
from ..seams import host, host_wan
from .made_weights import shell_of_layer

KERNELS: KernelSet = "cuda"  # what accelerators compute with
_Shape = tuple[Any, ...]
_Way = tuple[int, bool]  # tokens in a piece (0: whole), whether weights are made once a visit
_chosen: "weakref.WeakKeyDictionary[Swap, dict[_Shape, _Way]]" = weakref.WeakKeyDictionary()


def run_in_pieces(executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Stands around the forward of the host's transformer."""
    if not torch.compiler.is_compiling():  # compiled models run whole
        root: Any = executor.class_obj  # type: ignore[attr-defined]
        swap = vars(root).get("blockswap")
        if isinstance(swap, Swap) and not swap.closed and swap.pieces is not None and _usual(args):
            _choose(root, swap, swap.pieces, args, kwargs)
    return executor(*args, **kwargs)


def _usual(args: tuple[Any, ...]) -> bool:
    """Whether the arguments begin with latents, a timestep and text, as the host's own do."""
    return len(args) > 2 and all(isinstance(arg, torch.Tensor) for arg in args[:3])


def cut_smaller(swap: Swap | None) -> str | None:
    """After a forward that ran out of memory: what was done to it, None where it cannot be cut."""
    if swap is None or swap.pieces is None or swap.closed:
        return None
    root, pieces = swap.model, swap.pieces
    if why_never(root, pieces.family) is not None:
        return None
    ways = _chosen.setdefault(swap, {})
    if (tokens := pieces.shrink()) is None:
        keeping = pieces.loan.weights
        kept, keeping.allowed, keeping.happened = keeping.happened, False, False
        _chosen[swap] = {shape: (size, False) for shape, (size, _) in ways.items()}
        return _ANEW if kept else None
    for shape, (size, keeps) in ways.items():
        ways[shape] = min(size or tokens, tokens), keeps
    said = f"blocks run in pieces of at most {tokens:,} tokens from now on"
    swap.plan = replace(swap.plan, chunk_tokens=tokens)
    return said


def _choose(
    root: Any, swap: Swap, pieces: Pieces, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    latents, text = args[0], args[2]
    tokens = _tokens(root, latents)
    pieces.expects(tokens)
    if pieces.asked:
        return
    ways = _chosen.setdefault(swap, {})
    shape = (*latents.shape, *text.shape, *sorted(kwargs))
    if shape not in ways:
        ways[shape] = _WHOLE
        if why_never(root, pieces.family) is None:
            ways[shape] = _way_that_fits(root, swap, tokens, (args, kwargs))
    size, pieces.loan.weights.allowed = ways[shape]
    if size != pieces.chunk_tokens:
        pieces.resize(size)
        swap.plan = replace(swap.plan, chunk_tokens=size or None)


def _way_that_fits(root: Any, swap: Swap, tokens: int, given: Any) -> _Way:
    """Whole where that fits in what is free, or where nobody can tell what it needs."""
    pieces, device = swap.pieces, given[0][0].device
    smaller = sizes_below(tokens)
    if pieces is None or device.type == "cpu" or not smaller:
        return _WHOLE
    free = host.free_bytes(device)
    try:
        needs = Needs(root, pieces.family, given)
        whole = needs.of(0)
        if whole + MARGIN.of(whole) <= free:
            return _WHOLE
        size, keeps, needed = _that_fits(needs, smaller, free)
    except Exception as error:  # noqa: BLE001 - another pack's forward may do anything without data
        swap.tell(
            "blocks run whole until memory runs out, for what that needs cannot be foreseen "
            f"({str(error) or repr(error):.160})"
        )
        return _WHOLE
    swap.tell(
        f"the whole forward needs {format_bytes(whole)} of activations, and {format_bytes(free)} "
        f"are free: blocks run in pieces of at most {size:,} tokens, which needs "
        f"{format_bytes(needed)} at the same FLOPs" + ("" if keeps else f"; {_ANEW}")
    )
    return size, keeps


_WHOLE: _Way = 0, True
_ANEW = "weights are unpacked, cast and patched for each piece anew, for they do not fit beside it"


def _that_fits(needs: "Needs", sizes: tuple[int, ...], free: int) -> tuple[int, bool, int]:
    """Tokens, whether weights are made once a visit, and bytes; the least where nothing fits.

    Making weights anew for each piece costs more than smaller pieces do, so it comes last.
    """
    for keeps in (True, False):
        for size in sizes:
            needed = needs.of(size, keeps=keeps)
            if needed + MARGIN.of(needed) <= free:
                return size, keeps, needed
        if keeps and not needs.makes_weights:
            break
    return size, keeps, needed


class Needs:
    """Bytes that a forward takes beside its inputs, followed without data."""

    def __init__(self, root: Any, family: Family, given: Any) -> None:
        self._family, self._given = family, given
        self._shell = shell_of(root, given[0][0].dtype, layer_of=shell_of_layer)
        self.makes_weights = False  # as far as was seen

    def of(self, chunk_tokens: int, *, keeps: bool = True) -> int:
        """Whole (0) or in pieces; `keeps`: weights are made once. Raises ModelError."""
        args, kwargs = self._given
        # Its options (patches, wrappers) are what other packs do in the forward of the model.
        plain = tuple(host_wan.idle(v) if isinstance(v, Mapping) else v for v in args)
        named = {n: host_wan.idle(v) if isinstance(v, Mapping) else v for n, v in kwargs.items()}
        cut = Pieces(self._shell, chunk_tokens, _refuse, family=self._family, samples=True)
        cut.loan.weights.allowed = keeps
        try:
            cost = predict_module(self._shell, plain, named, kernels=KERNELS)
        finally:
            cut.remove()
        self.makes_weights |= cut.loan.weights.happened
        return cost.activation_bytes - cost.input_bytes


def _refuse(sentence: str) -> None:
    raise ModelError(f"a forward in pieces cannot be followed: {sentence}")


def _tokens(root: Any, latents: torch.Tensor) -> int:
    """Tokens of the clip; what a model adds of its own (a reference frame) is not counted."""
    sizes = zip(latents.shape[2:], root.patch_size, strict=True)
    return math.prod(-(-size // patch) for size, patch in sizes)
