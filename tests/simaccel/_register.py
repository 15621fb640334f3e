"""Registers the built extension with torch as device "sim", once per process."""

from __future__ import annotations

import atexit
import functools
import importlib
import os
from types import ModuleType

import torch

from . import _build, _device_module

BACKEND_NAME = "sim"


def ensure() -> None:
    """Builds (on first use), loads and registers the device. Cheap when it was done before.

    Must come before any other accelerator is used: a process has one. Raises CannotBuild where
    there is no compiler, and RuntimeError if the build fails.
    """
    if hasattr(torch, BACKEND_NAME):
        return
    # The shapes of operators that have no C++ Meta kernel.
    importlib.import_module("torch._meta_registrations")
    extension = _build.load()
    torch.utils.rename_privateuse1_backend(BACKEND_NAME)
    torch._register_device_module(BACKEND_NAME, _device_module.make(extension))
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    _check_event_waits(extension)
    # Workers stop before the interpreter and torch's static objects go away.
    atexit.register(extension.shutdown)


def unavailable_reason() -> str | None:
    """Why the device cannot be had here, for `pytest.mark.skipif`; None if it can.

    Where the environment variable CI is set nothing is skipped: the reason is raised instead.
    """
    try:
        ensure()
    except _build.CannotBuild as error:
        if os.environ.get("CI"):
            raise
        return f"the simulated accelerator cannot be built: {error}"
    return None


def _check_event_waits(extension: ModuleType) -> None:
    """Makes waits on events that were never recorded visible.

    torch's generic event drops such a wait before the backend sees it, so the methods of the two C
    types are wrapped.
    """

    def waits_for_nothing(event: torch.Event) -> bool:
        return event.event_id == 0 and event.device.type == BACKEND_NAME

    def checked(method, event_of, what):
        @functools.wraps(method)
        def wrapper(self, *args, **kwargs):
            if waits_for_nothing(event_of(self, *args, **kwargs)):
                extension.unrecorded_wait(what)
            return method(self, *args, **kwargs)

        return wrapper

    def own(event, *args, **kwargs):
        return event

    def given(stream, event):
        return event

    extension.replace_method(
        torch.Stream, "wait_event", checked(torch.Stream.wait_event, given, "stream.wait_event()")
    )
    for name in ("wait", "synchronize"):
        method = getattr(torch.Event, name)
        extension.replace_method(torch.Event, name, checked(method, own, f"event.{name}()"))
