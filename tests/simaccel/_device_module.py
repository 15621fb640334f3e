"""`torch.sim`: the module functions that torch, diffusers and others expect of a backend."""

from __future__ import annotations

from types import ModuleType

import torch


def make(extension: ModuleType) -> ModuleType:
    """Returns the module that is registered as `torch.sim`."""
    module = ModuleType("torch.sim", "The simulated accelerator of the test suite.")
    module._extension = extension
    for function in (
        _is_in_bad_fork,
        _lazy_init,
        current_device,
        current_stream,
        default_generator,
        default_stream,
        device_count,
        empty_cache,
        get_amp_supported_dtype,
        get_rng_state,
        is_available,
        is_initialized,
        manual_seed,
        max_memory_allocated,
        memory_allocated,
        memory_reserved,
        mem_get_info,
        reset_peak_memory_stats,
        set_device,
        set_rng_state,
        set_stream,
        stream,
        synchronize,
    ):
        setattr(module, function.__name__, function)
    module.manual_seed_all = manual_seed_all
    module.Stream = Stream
    module.Event = Event
    module.device = device
    return module


def Stream(device=None, priority=0):
    """A new stream of the simulated device."""
    return torch.Stream("sim", priority=priority)


def Event(enable_timing=False, blocking=False, interprocess=False):
    """A new event of the simulated device."""
    return torch.Event("sim", enable_timing=enable_timing)


class device:
    """A context in which the given device is current: there is only one."""

    def __init__(self, device):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def stream(stream):
    """A context in which `stream` is current (a torch.Stream is that context itself)."""
    return stream


def current_stream(device=None):
    return torch.accelerator.current_stream(device)


def default_stream(device=None):
    return torch.Stream(stream_id=0, device_index=0, device_type=_device_type())


def set_stream(stream):
    torch.accelerator.set_stream(stream)


def synchronize(device=None):
    torch.accelerator.synchronize()


def is_available():
    return True


def is_initialized():
    return True


def _lazy_init():
    pass


def _is_in_bad_fork():
    return False


def device_count():
    return 1


def current_device():
    return 0


def set_device(device):
    pass


def get_amp_supported_dtype():
    return [torch.float16, torch.bfloat16, torch.float32]


def empty_cache():
    torch.accelerator.empty_cache()


def memory_allocated(device=None):
    return torch.accelerator.memory_allocated()


def max_memory_allocated(device=None):
    return torch.accelerator.max_memory_allocated()


def memory_reserved(device=None):
    return torch.accelerator.memory_reserved()


def reset_peak_memory_stats(device=None):
    torch.accelerator.reset_peak_memory_stats()


def mem_get_info(device=None):
    return torch.accelerator.get_memory_info()


def default_generator():
    """The device's own random number generator."""
    return torch.sim._extension.default_generator()


def manual_seed(seed):
    default_generator().manual_seed(seed)


manual_seed_all = manual_seed


def get_rng_state(device="sim"):
    return default_generator().get_state()


def set_rng_state(state, device="sim"):
    default_generator().set_state(state)


def _device_type():
    return int(torch._C._autograd.DeviceType.PrivateUse1)
