"""Owns the guard between torch's ambient state and our own code.

Whatever a caller has turned on around a call (a default device or dtype, function modes, inference
mode, grad) is meant for the caller's tensors, never for the engine's. Every door of the engine
(opening, a hook of a forward, a change of residency, closing) is entered through this guard; a
model's own forward runs outside it and sees what its caller sees.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import overrides
from torch.utils import _python_dispatch

# Private, and the only way: modes are taken off as torch itself does while it runs one of them.
_depth = torch._C._len_torch_function_stack
_take_one_off = overrides._pop_mode_temporarily
_PROXY = torch._C._TorchDispatchModeKey.PROXY


def without_function_modes() -> contextlib.AbstractContextManager[None]:
    """Nothing but a look at a counter where no mode is on: blocks are entered through this."""
    return _without_function_modes() if _depth() else contextlib.nullcontext()


@contextlib.contextmanager
def _without_function_modes() -> Iterator[None]:
    with contextlib.ExitStack() as put_back:
        while _depth():
            put_back.enter_context(_take_one_off())
        yield


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """No function or dispatch mode (a fake or counted tensor would be kept), no default device, no
    inference mode, no grad. Serves as a decorator."""
    here = without_function_modes(), _without_dispatch_modes()
    with here[0], here[1], torch.inference_mode(False), torch.no_grad():
        yield


def is_recording() -> bool:
    """Whether operations are being recorded to be run again (`torch.jit.trace`, `make_fx`)."""
    return (
        torch._C._get_tracing_state() is not None or torch._C._get_dispatch_mode(_PROXY) is not None
    )


def _without_dispatch_modes() -> contextlib.AbstractContextManager[object]:
    if not torch._C._len_torch_dispatch_stack():
        return contextlib.nullcontext()
    return _python_dispatch._disable_current_modes()


@contextlib.contextmanager
def as_at_start() -> Iterator[None]:
    """`undisturbed`, and tensors of fp32 where nobody names a dtype: to build others' models in."""
    dtype = torch.get_default_dtype()
    if dtype is not torch.float32:  # of the whole process: touched only where it must be
        torch.set_default_dtype(torch.float32)
    try:
        with undisturbed():
            yield
    finally:
        if dtype is not torch.float32:
            torch.set_default_dtype(dtype)
