"""Which bytes count as alive in a forward on meta tensors, and which FLOPs go to which unit.

A dispatch mode sees every operation the device would be asked for. All tensors are on torch's
*meta* device: an operation only works out shapes, so the 14B model at 720p takes a second and no
memory. Every fresh storage counts from the operation that makes it until torch lets go of it:

    op:      linear        gelu          linear       (return)
    alive:   x             x h           x h g        x g y        x y      h is freed when the
    bytes:   |--------------------------------peak----------|                frame drops it
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten, tree_iter, tree_map, tree_unflatten
from torch.utils.flop_counter import flop_registry

from ..layout.slab import align_up
from .known_values import KnownValues

# Made of several operations on every device, and their results are as large as its input.
_TAKEN_APART = frozenset({torch.ops.aten._safe_softmax.default})
_KEPT_DEVICES = ("cpu", "meta")
GRANULARITY_BYTES = 512  # CUDA's caching allocator hands out multiples of it


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts live bytes and FLOPs of what runs inside it; runs nothing but shapes.

    Real tensors on the CPU stay real among themselves (a model may compute sizes on the host) and
    become meta where they meet a meta tensor. What is asked for on an accelerator is made on meta.
    `on_host`: as the CPU would run it; see `_scratch_bytes`.
    """

    def __init__(self, weights: Iterable[torch.Tensor] = (), *, on_host: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_host = on_host
        self.live_bytes = 0
        self.peak_bytes = 0
        self.unit_flops: dict[str, int] = {}
        self.rest_flops = 0
        self.attention_flops: dict[str, int] = {}  # what of `unit_flops` one kernel does
        self.known = KnownValues()
        self._units: list[str] = []
        self._live: dict[int, weakref.ref[Any]] = {}
        self._twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        # Held, so that no activation's storage gets the address of a weight's.
        self._weights = {s._cdata: s for s in (w.untyped_storage() for w in weights)}

    # ---- memory ----------------------------------------------------------------------------

    def note(self, tensor: torch.Tensor) -> None:
        """Counts the tensor's storage as alive from now on, if it is new and no weight's."""
        if tensor.device.type != "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live or key in self._weights:
            return
        nbytes = align_up(storage.nbytes(), GRANULARITY_BYTES)
        self._live[key] = weakref.ref(storage, self._forgetter(key, nbytes))
        self.live_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _forgetter(self, key: int, nbytes: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            self._live.pop(key)
            self.live_bytes -= nbytes

        return forget

    def spike(self, nbytes: int) -> None:
        """Counts `nbytes` more that were alive for a moment just now."""
        self.peak_bytes = max(self.peak_bytes, self.live_bytes + nbytes)

    @contextmanager
    def own_peak(self) -> Iterator[Callable[[], int]]:
        """Measures the peak inside, as bytes above what is alive at entry; the outer one holds."""
        outer, start, self.peak_bytes = self.peak_bytes, self.live_bytes, self.live_bytes
        try:
            yield lambda: self.peak_bytes - start
        finally:
            self.peak_bytes = max(outer, self.peak_bytes)

    # ---- FLOPs -----------------------------------------------------------------------------

    def add_flops(self, flops: int) -> None:
        if not self._units:
            self.rest_flops += flops
            return
        name = self._units[-1]
        self.unit_flops[name] = self.unit_flops.get(name, 0) + flops

    def add_attention_flops(self, flops: int) -> None:
        """FLOPs of a kernel that has a rate of its own."""
        self.add_flops(flops)
        if self._units:
            name = self._units[-1]
            self.attention_flops[name] = self.attention_flops.get(name, 0) + flops

    @contextmanager
    def watching(self, units: Iterable[tuple[str, torch.nn.Module]]) -> Iterator[None]:
        """Attributes FLOPs to the unit whose forward runs; its hooks leave with the context."""
        handles = []
        for name, module in units:
            self.unit_flops.setdefault(name, 0)

            def enter(_: object, __: object, name: str = name) -> None:
                self._units.append(name)

            def leave(_: object, __: object, ___: object) -> None:
                self._units.pop()

            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # ---- operations ------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(map(_takes_itself_apart, types)):
            return NotImplemented  # the subclass says what it does; that is seen then
        args, kwargs = self._on_meta(args, kwargs or {})
        if func in _TAKEN_APART:
            with self:
                return func._op_dk(DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        out = self.known.run(func, args, kwargs)
        for leaf in (out,) if isinstance(out, torch.Tensor) else tree_iter(out):
            if isinstance(leaf, torch.Tensor):
                self.note(leaf)
        if self._on_host and func is torch.ops.aten.convolution.default:
            self.spike(_scratch_bytes(args[0], args[1], out))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.add_flops(int(formula(*args, **kwargs, out_val=out)))
        return out

    def _on_meta(self, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments with every tensor and device on meta that a device would have to have."""
        if all(map(_is_settled, args)) and all(map(_is_settled, kwargs.values())):
            return args, kwargs  # nearly always, and ten times as fast
        leaves, shape = tree_flatten((args, kwargs))
        mixed = any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in leaves)
        changed = [self._leaf_on_meta(leaf, mixed) for leaf in leaves]
        args, kwargs = tree_unflatten(changed, shape)
        return args, kwargs

    def _leaf_on_meta(self, leaf: Any, mixed: bool) -> Any:
        if isinstance(leaf, torch.device) and leaf.type not in _KEPT_DEVICES:
            return torch.device("meta")
        if not isinstance(leaf, torch.Tensor) or leaf.is_meta:
            return leaf
        # Host tensors stay, but for those that meet the device's; a number may meet any.
        if leaf.is_cpu and (not mixed or leaf.dim() == 0):
            return leaf
        return self._twin(leaf)

    def _twin(self, tensor: torch.Tensor) -> torch.Tensor:
        """The meta form of a tensor that was there before: no activation, the same each time."""
        if id(tensor) not in self._twins:
            meta = to_meta(tensor)
            storage = meta.untyped_storage()
            self._weights[storage._cdata] = storage
            self._twins[id(tensor)] = tensor, meta
            self.known.learn(meta, tensor)
        return self._twins[id(tensor)][1]


def _scratch_bytes(given: torch.Tensor, weight: torch.Tensor, made: torch.Tensor) -> int:
    """What a convolution of the CPU's (oneDNN) takes beside its result, as measured in torch 2.13.

    Input and weights in a layout of its own; below fp32 half as much as the result, too.
    """
    return given.nbytes + weight.nbytes + (made.nbytes // 2 if made.itemsize < 4 else 0)


def _takes_itself_apart(kind: type) -> bool:
    """Whether tensors of this class are made of others (quantised ones of torchao, for example)."""
    return issubclass(kind, torch.Tensor) and hasattr(kind, "__tensor_flatten__")


def to_meta(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without its data: shape, strides and dtype on the meta device."""
    if is_traceable_wrapper_subclass(tensor):
        return tensor.detach().to("meta")
    if tensor.device.type == "meta":
        return tensor.detach()
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def map_to_meta(tree: Any, known: KnownValues) -> Any:
    """All tensors of a nest of lists, tuples and dictionaries on meta; the rest as it is.

    Their values are `known` from now on, where there are values and they are few.
    """

    def on_meta(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        meta = to_meta(leaf)
        if type(leaf) in (torch.Tensor, torch.nn.Parameter):
            known.learn(meta, leaf)
        return meta

    return tree_map(on_meta, tree)


def _is_settled(argument: Any) -> bool:
    if isinstance(argument, torch.Tensor):
        return argument.is_meta
    if isinstance(argument, list | tuple):
        return all(map(_is_settled, argument))
    return not isinstance(argument, torch.device) or argument.type in _KEPT_DEVICES
