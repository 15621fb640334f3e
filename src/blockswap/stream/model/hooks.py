"""Hooks of a swapped model, and which moves, casts, loads, saves and copies of it are refused.

All of them are instance attributes or torch hooks: `remove()` leaves the module as it was found.
They are invisible to the compiler: a compiled model breaks its graph around a block, never in it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...ambient import without_function_modes
from ...errors import StateError
from ..engine.run_by_method import by_method, end_idle
from ..engine.streamer import Streamer


class Hooks:
    """Everything that is installed on a model while it is swapped."""

    def __init__(self, root: torch.nn.Module) -> None:
        self._root = root
        self._handles: list[Any] = []
        self._guarded: list[tuple[torch.nn.Module, Callable[..., torch.nn.Module]]] = []
        self._names_only = False
        # Ours in place of a method, and an instance's own before it.
        self._stood_in: list[tuple[torch.nn.Module, str, Any, Any]] = []

    def connect(
        self,
        streamer: Streamer,
        modules: Sequence[torch.nn.Module],
        methods_of: Callable[[torch.nn.Module], Iterable[str]],
    ) -> None:
        """`modules[i]` is the module of unit i; `root` is the model whose forward runs them.

        `methods_of` a module: methods by which it may be run beside its call, by name.
        """
        begin = _Invisible(_Begin(streamer).pre)
        self._handles.append(self._root.register_forward_pre_hook(begin, prepend=True))
        end = _Invisible(_Begin(streamer).post)
        self._handles.append(self._root.register_forward_hook(end, always_call=True))
        for index, module in enumerate(modules):
            unit = _UnitHooks(streamer, index)
            # First of all hooks: others may look at the weights.
            self._handles.append(
                module.register_forward_pre_hook(_Invisible(unit.pre), prepend=True)
            )
            # Always called: a forward that raises gives its slot back, too. Ctrl-C is the exception
            # that torch does not call it for; `Streamer.repair` sees to what that leaves behind.
            self._handles.append(
                module.register_forward_hook(_Invisible(unit.post), always_call=True)
            )
            register: Any = module.register_state_dict_pre_hook
            self._handles.append(register(unit.before_state_dict))
            for name in methods_of(module):
                self._stand_in(module, name, _Method(streamer, index, getattr(module, name)))

    def guard(self, modules: Sequence[torch.nn.Module], moves: "Moves") -> None:
        """Makes `.to()`, `.half()` and their like harmless or refused on root and `modules`."""
        for module in dict.fromkeys((self._root, *modules)):
            if "_apply" not in vars(module):
                ours = _MoveGuard(module, moves).apply
                module._apply = ours  # type: ignore[method-assign]
                self._guarded.append((module, ours))

    def refuse_loading(self, modules: Sequence[torch.nn.Module], moves: "Moves") -> None:
        """`load_state_dict()` of what the swap placed is refused before it touches anything.

        What came into the model later, such as a LoRA, is loaded as ever.
        """
        refusal = _Refusal(
            f"weights were to be loaded into {moves.label} while its blocks are swapped: close the "
            "swap, load them, then swap again",
            moves.own,
        )
        for module in dict.fromkeys((self._root, *modules)):
            register: Any = module.register_load_state_dict_pre_hook
            self._handles.append(register(refusal.before_loading))

    def refuse_state_dict(
        self,
        modules: Mapping[str, torch.nn.Module],
        applies: Callable[[str], bool],
        sentence: str,
    ) -> None:
        """`state_dict()` of a unit's module or a part of it raises `sentence` where `applies`."""

        def saves(name: str) -> bool:
            return not self._names_only and applies(name)

        for name, module in modules.items():
            refusal = _SavingRefusal(name, saves, sentence)
            for part in module.modules():
                register: Any = part.register_state_dict_pre_hook
                self._handles.append(register(refusal.hook))

    @contextmanager
    def names_only(self) -> Iterator[None]:
        """While a library asks for `state_dict()` and looks at nothing but its names."""
        self._names_only = True
        try:
            yield
        finally:
            self._names_only = False

    def after_forward(self, call: Callable[[], None]) -> None:
        """Calls `call` whenever the whole model's forward has returned."""

        def post(module: torch.nn.Module, args: Any, output: Any) -> None:
            call()

        self._handles.append(self._root.register_forward_hook(_Invisible(post)))

    def stand_in(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Puts `wrap(forward)` in place of the forward of the whole model."""
        self._stand_in(self._root, "forward", wrap(self._root.forward))

    def _stand_in(self, module: torch.nn.Module, name: str, ours: Any) -> None:
        self._stood_in.append((module, name, ours, vars(module).get(name)))
        setattr(module, name, ours)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for module, name, ours, before in self._stood_in:
            if vars(module).get(name) is ours:  # else someone has wrapped it meanwhile
                delattr(module, name)
                if before is not None:
                    setattr(module, name, before)
        self._stood_in.clear()
        for module, ours in self._guarded:
            if vars(module).get("_apply") is ours:  # else someone has wrapped it meanwhile
                del module._apply
        self._handles.clear()
        self._guarded.clear()


class Uncopyable:
    """A hook owner that `copy.deepcopy` of the model runs into."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Uncopyable":
        raise StateError(
            "a copy of a swapped model was asked for, and its hooks and weights cannot be shared "
            "that way: close the swap, copy the model, then swap both"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        raise StateError("a swapped model cannot be pickled: close the swap first")


class _Invisible(Uncopyable):
    """A hook that the compiler does not look into: it breaks the graph in front of the call."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook = hook

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any) -> Any:
        with without_function_modes():
            return self._hook(*args)


class _Begin(Uncopyable):
    def __init__(self, streamer: Streamer) -> None:
        self._streamer = streamer

    def pre(self, module: torch.nn.Module, args: Any) -> None:
        end_idle(self._streamer)  # an interrupt may have kept the last forward from doing it
        self._streamer.begin_forward()

    def post(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        end_idle(self._streamer)
        self._streamer.end_forward()


class _UnitHooks(Uncopyable):
    def __init__(self, streamer: Streamer, index: int) -> None:
        self._streamer = streamer
        self._index = index

    def pre(self, module: torch.nn.Module, args: Any) -> None:
        end_idle(self._streamer)
        self._streamer.enter(self._index)

    def post(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        apart = self._streamer.leave(self._index, output)
        if _requires_grad(output):
            raise StateError(
                "gradients were switched on inside the forward of a block whose weights leave the "
                "device after use: run the whole model under torch.no_grad()"
            )
        return None if apart is output else apart

    def before_state_dict(self, module: torch.nn.Module, prefix: str, keep_vars: bool) -> None:
        self._streamer.refuse_saving(self._index)
        self._streamer.repair()


class _Method(Uncopyable):
    """Stands in for a method by which a unit runs beside its call."""

    def __init__(self, streamer: Streamer, index: int, method: Callable[..., Any]) -> None:
        self._streamer, self._index, self._method = streamer, index, method
        self.__name__ = getattr(method, "__name__", type(method).__name__)

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator, no-untyped-call]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with by_method(self._streamer, self._index):
            return self._method(*args, **kwargs)


def _same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    # In fp32: not every dtype of a checkpoint can be compared.
    return torch.equal(one.to("cpu").to(torch.float32), other.to(torch.float32))


def _requires_grad(output: Any) -> bool:
    if isinstance(output, torch.Tensor):
        return output.requires_grad
    return isinstance(output, (tuple, list)) and any(map(_requires_grad, output))


class _Refusal(Uncopyable):
    def __init__(self, sentence: str, own: frozenset[tuple[int, str]]) -> None:
        self._sentence = sentence
        self._own = own

    def before_loading(
        self, module: torch.nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any
    ) -> None:
        inside = {id(m): name for name, m in module.named_modules()}
        own = ((inside[number], name) for number, name in self._own if number in inside)
        if any(f"{prefix}{path}{'.' * bool(path)}{name}" in state_dict for path, name in own):
            raise StateError(self._sentence)


class _SavingRefusal(Uncopyable):
    """Where a unit rests may change, so it is asked when it matters."""

    def __init__(self, name: str, applies: Callable[[str], bool], sentence: str) -> None:
        self._name = name
        self._applies = applies
        self._sentence = sentence

    def hook(self, module: torch.nn.Module, prefix: str, keep_vars: bool) -> None:
        if self._applies(self._name):
            raise StateError(self._sentence)


@dataclass(frozen=True, slots=True)
class Moves:
    """What a swapped model may be moved to: its own device and the dtypes it has already."""

    label: str
    device: torch.device
    dtypes: frozenset[torch.dtype]
    own: frozenset[tuple[int, str]]  # (id of module, name) of each tensor that the swap placed


# What a function for all weights is tried on: vectors, and what has a memory format.
_PROBES = ((4,), (1, 2, 1, 2), (1, 2, 1, 2, 1))


class _MoveGuard(Uncopyable):
    """Stands in for `Module._apply`, through which every move and cast of weights goes."""

    def __init__(self, module: torch.nn.Module, moves: Moves) -> None:
        self._module = module
        self._moves = moves

    def apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> torch.nn.Module:
        """A move to the device of the swap does nothing, for everything is there or on its way.

        Any other change is refused: it would move, cast or replace weights behind the engine.
        """
        moves = self._moves
        for dtype in moves.dtypes:
            for shape in _PROBES:
                probe = torch.arange(4, dtype=torch.float32, device="cpu").to(dtype)
                self._refuse_other_values(fn, probe.view(shape))
        # A dtype-only call leaves a probe on the swap's device where it is; a move would not.
        dtype = next(iter(moves.dtypes), torch.float32)
        moved = fn(torch.empty(0, dtype=dtype, device=moves.device)).device
        if moved != moves.device:
            raise StateError(
                f"{moves.label} was to be moved to {moved} while its blocks are swapped to "
                f"{moves.device}: close the swap before moving it"
            )
        self._move_added(fn)
        return self._module

    def _refuse_other_values(
        self, fn: Callable[[torch.Tensor], torch.Tensor], probe: torch.Tensor
    ) -> None:
        """`fn` may move weights: a probe that comes back as anything else says what it would do."""
        label, before = self._moves.label, probe.clone()
        changed = fn(probe)
        if changed.dtype is not before.dtype:
            raise StateError(
                f"{label} was to be cast to {changed.dtype} while its blocks are "
                "swapped: close the swap, cast the model, then swap it again"
            )
        laid_out = changed.shape == before.shape and changed.stride() == before.stride()
        if not changed.is_meta and not (laid_out and _same_values(changed, before)):
            raise StateError(
                f"the weights of {label} were to be changed while its blocks are swapped: close "
                "the swap, change them, then swap it again"
            )
        if changed.device.type == "cpu" and changed.is_shared():  # type: ignore[no-untyped-call]
            raise StateError(
                f"the weights of {label} were to be put into shared memory while its blocks are "
                "swapped: share them before they are swapped"
            )

    def _move_added(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """What came into the model after the swap (a LoRA, say) moves as it would have."""
        for module in self._module.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and (id(module), name) not in self._moves.own:
                    moved = fn(parameter.data)
                    module._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None and (id(module), name) not in self._moves.own:
                    module._buffers[name] = fn(buffer)
