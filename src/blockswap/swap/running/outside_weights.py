"""The error of a forward that computes with a part of a streamed block outside that block's run."""

from types import TracebackType

import torch

from ...errors import StateError

_MIXED = "Expected all tensors to be on the same device"


def explained(error: RuntimeError, model: object) -> StateError | None:
    """What to raise in place of torch's error where a weight in host memory is the reason.

    A model may reach into its own blocks (take the time embedding of the first one, say). Between
    the runs of a streamed block its weights are in host memory. None for any other error.
    """
    if _MIXED not in str(error) or not isinstance(model, torch.nn.Module):
        return None
    running = _innermost_module(error.__traceback__)
    if running is None or not any(
        weight.device.type == "cpu" for weight in running.parameters(recurse=False)
    ):
        return None
    name = next((path for path, module in model.named_modules() if module is running), None)
    if name is None:
        return None
    return StateError(
        f"{type(model).__name__} computes with {name} outside the run of its block, while the "
        "weights are in host memory: leave that block out of `blocks`, so that it stays"
    )


def _innermost_module(trace: TracebackType | None) -> torch.nn.Module | None:
    found = None
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module):
            found = owner
        trace = trace.tb_next
    return found
