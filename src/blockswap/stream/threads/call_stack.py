"""Whether a thread is inside a module's forward, read off its Python stack frames."""

import sys
import threading
from types import FrameType

import torch

_CALL = torch.nn.Module._call_impl.__code__
_MODULE_CALLS = frozenset((_CALL, torch.nn.Module._wrapped_call_impl.__code__))


def calls_here(module: torch.nn.Module) -> int:
    """How many calls of `module` this thread is in."""
    frame: FrameType | None = sys._getframe()
    count = 0
    while frame is not None:
        count += frame.f_code is _CALL and frame.f_locals.get("self") is module
        frame = frame.f_back
    return count


def in_any_module(thread: threading.Thread) -> bool:
    """Whether `thread` is in the forward of some module."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code in _MODULE_CALLS:
            return True
        frame = frame.f_back
    return False


def still_inside(thread: threading.Thread, module: torch.nn.Module) -> bool:
    """Whether `thread` is really still in the forward of `module`.

    Of another thread only code objects are looked at (reading the locals of a running frame
    is not safe), so being in the forward of any module counts.
    """
    if thread is not threading.current_thread():
        return in_any_module(thread)
    frame: FrameType | None = sys._getframe().f_back
    while frame is not None:
        if frame.f_locals.get("self") is module:
            return True
        frame = frame.f_back
    return False
