"""What a layer makes anew at each call (a weight unpacked, cast or patched), made once for a visit.

Such a layer ends in one function of torch, which it hands its input and what it has made. Its
first call in a visit is watched, with an input that has no numbers: the layer comes to that
function by its own way, and the function does not run. From then on a call of the layer is that
function with what was made. A layer that does anything else with its input (it rounds it, to
multiply in the stored form) goes its own way, as does one that makes nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

_CALL = "_call_impl"  # what torch runs for a call of a module, hooks included
_LAST: frozenset[Any] = frozenset(
    {
        *(torch.nn.functional.linear, torch.nn.functional.layer_norm, torch.layer_norm),
        *(torch.nn.functional.rms_norm, torch.rms_norm),
    }
)


@dataclass(slots=True)
class Keeping:
    """Whether what layers make may be kept for a visit, and whether anything ever was.

    Where it may not, each call makes it anew, in the same way: some layers compute otherwise for
    few tokens, and a piece has fewer than the whole.
    """

    allowed: bool = True
    happened: bool = False


@contextmanager
def made_once(block: torch.nn.Module, whole: tuple[int, int], keeping: Keeping) -> Iterator[None]:
    """While a block runs in pieces, its layers make their weights once; then nothing is kept.

    `whole`: samples and tokens of the block's input, which a layer may decide by.
    """
    parts = (part for part in block.modules() if part is not block and _CALL not in vars(part))
    making = (part for part in parts if any(True for _ in _weights(part)))
    calls = {part: _Layer(part, whole, keeps=keeping.allowed) for part in making}
    try:
        for layer, call in calls.items():
            vars(layer)[_CALL] = call
        yield
    finally:
        keeping.happened |= keeping.allowed and any(call.has_made for call in calls.values())
        for layer, call in calls.items():
            call.forget()
            vars(layer).pop(_CALL, None)


def let_go(layers: Iterable[Any]) -> None:
    """Drops what was made for these layers: they are not called any more in this visit."""
    for layer in layers:
        call = vars(layer).get(_CALL) if isinstance(layer, torch.nn.Module) else None
        if isinstance(call, _Layer):
            call.forget()


def kept_in_visit(layer: torch.nn.Module) -> dict[str, Any] | None:
    """What a hook on a layer may keep until the visit ends; None outside of a visit in pieces."""
    call = vars(layer).get(_CALL)
    return call.kept if isinstance(call, _Layer) else None


def _weights(layer: torch.nn.Module) -> Iterator[torch.Tensor]:
    return (weight for weight in layer._parameters.values() if weight is not None)


class _Layer:
    """Stands in front of the calls of one layer."""

    def __init__(self, layer: torch.nn.Module, whole: tuple[int, int], *, keeps: bool) -> None:
        self._layer, self._whole, self._keeps = layer, whole, keeps
        self._own = type(layer)._call_impl.__get__(layer)
        self._ends: dict[Any, _End | None] = {}
        self.kept: dict[str, Any] = {}
        self.has_made = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        end = None if kwargs or len(args) != 1 else self._end(args[0])
        made = self._own(*args, **kwargs) if end is None else end(args[0])
        if not self._keeps:
            self._let_go()
        return made

    def _end(self, given: Any) -> "_End | None":
        """How the layer's call ends for an input like this; None where it goes its own way."""
        if not isinstance(given, torch.Tensor) or given.dim() != 3:
            return None
        like = given.dtype, given.device, given.shape[2]
        if like not in self._ends:
            # A weight that is elsewhere is brought into memory that other layers share.
            here = all(weight.device == given.device for weight in _weights(self._layer))
            self._ends[like] = end = self._watched(given) if here else None
            if end is not None:
                self.kept.clear()  # it went into what was made
            self.has_made |= end is not None or bool(self.kept)
        return self._ends[like]

    def _watched(self, given: torch.Tensor) -> "_End | None":
        example = given.new_empty(()).expand(*self._whole, given.shape[2])
        watch = _Watch(example)
        try:
            with watch:
                answer = self._own(example)
        except _AnotherWay:
            self._call_last_hooks(example)
            return None
        except RuntimeError:  # it writes into the answer; the real call says what else it may be
            return None
        end = watch.end
        if end is None or watch.went_astray or not _is_same(answer, watch.answer):
            return None
        return end if end.has_made(self._layer) else None

    def _call_last_hooks(self, example: torch.Tensor) -> None:
        """Those that torch itself always calls, but not where anything but an Exception ends it."""
        always, hooks = (vars(self._layer)[f"_forward_hooks{of}"] for of in ("_always_called", ""))
        for number in always:
            hooks[number](self._layer, (example,), None)

    def _let_go(self) -> None:
        """Of what was made; that a layer goes its own way is still known."""
        self._ends = {like: end for like, end in self._ends.items() if end is None}
        self.kept.clear()

    def forget(self) -> None:
        self._ends.clear()
        self.kept.clear()


class _End:
    """The function that a layer ends in, and what it is handed beside the layer's input."""

    def __init__(self, function: Any, rest: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._function, self._rest, self._named = function, rest, named

    def __call__(self, given: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self._function(given, *self._rest, **self._named)
        return made

    def has_made(self, layer: torch.nn.Module) -> bool:
        """Whether any of it is not simply a weight of the layer."""
        own = [id(weight) for weight in _weights(layer)]
        handed = tree_leaves((self._rest, self._named))
        return any(isinstance(one, torch.Tensor) and id(one) not in own for one in handed)


class _AnotherWay(BaseException):
    """A layer does something else with its input. No Exception: some hosts go on after any."""


class _Watch(TorchFunctionMode):
    """Ends a layer's way with its input: at the function of `_LAST`, or where it is another way."""

    def __init__(self, example: torch.Tensor) -> None:
        super().__init__()
        self.example = example
        self.end: _End | None = None
        self.answer: torch.Tensor | None = None
        self.went_astray = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        places = [one is self.example for one in tree_leaves((args, named))]
        if not any(places):
            return func(*args, **named)
        if func in _LAST and places[0] and sum(places) == 1:
            if any(map(is_traceable_wrapper_subclass, args)):
                with _Below(self):
                    return func(*args, **named)
            return self.ends_in(func, args, named)
        # Its dtype, device, sizes may be asked.
        if getattr(func, "__name__", "") in _QUESTIONS:
            told = func(*args, **named)
            if not isinstance(told, torch.Tensor):
                return told
        self.goes_astray()

    def ends_in(self, func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor:
        """Notes the last function, and answers for it."""
        sizes = list(self.example.shape)
        if func is torch.nn.functional.linear:
            sizes[-1] = (args[1] if len(args) > 1 else named["weight"]).shape[0]
        self.end = _End(func, args[1:], named)
        self.answer = self.example.new_empty(()).expand(sizes)
        return self.answer

    def goes_astray(self) -> NoReturn:
        self.went_astray = True
        raise _AnotherWay


class _Below(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The last function is handed a quantised weight, which itself knows what to do.

    Some multiply in the stored form, some make a plain weight and come to the function again.
    """

    def __init__(self, watch: _Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named, example = kwargs or {}, self._watch.example
        leaves = tree_leaves((args, named))
        if any(map(is_traceable_wrapper_subclass, leaves)):
            return NotImplemented
        if not any(one is example for one in leaves):
            return func(*args, **named)
        if func is not torch.ops.aten.linear.default or leaves[0] is not example:
            self._watch.goes_astray()
        return self._watch.ends_in(torch.nn.functional.linear, args, named)


_QUESTIONS = frozenset(
    {
        *("__get__", "size", "dim", "ndimension", "numel", "nelement", "element_size", "stride"),
        *("is_contiguous", "is_floating_point", "get_device", "__len__"),
    }
)


def _is_same(answer: Any, expected: torch.Tensor | None) -> bool:
    """Whether an answer is the expected tensor, or another view of the same kind on it."""
    if answer is expected:
        return True
    if not isinstance(answer, torch.Tensor) or expected is None:
        return False
    there, here = answer.untyped_storage(), expected.untyped_storage()
    return answer.shape == expected.shape and there._cdata == here._cdata
