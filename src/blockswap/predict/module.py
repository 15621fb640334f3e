"""`predict_module`: any module's forward run on meta tensors; what is refused."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.func import functional_call
from torch.utils._pytree import tree_iter

from ..adapters.families import bare, unit_modules
from ..ambient import as_at_start
from ..errors import ModelError
from ..plan.inputs.workload import AttentionKind, ForwardCost, KernelSet
from .kernels import Kernels
from .recorder import Recorder, map_to_meta, to_meta
from .untouched import left_untouched


def predict_module(
    model: torch.nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    attention: AttentionKind = "flash",
    kernels: KernelSet = "cuda",
) -> ForwardCost:
    """What one forward of a model with these inputs costs; nothing is computed or allocated.

    `model` is any module with lists of blocks (diffusers' and transformers' classes, ComfyUI's),
    on any device or without data; it is not changed. The inputs are examples: their
    shapes and dtypes count, and they may be meta tensors. What a forward moves to the device and
    keeps there (the original's rope table) counts as made in this one. Raises ModelError for a
    model without blocks, for one that is being swapped, and where the forward asks for the values
    of a tensor.
    """
    root = bare(model)
    units = [(unit.name, unit.module) for unit in unit_modules(root)]
    _refuse_swapped(root)
    state = {
        name: to_meta(tensor) for name, tensor in [*root.named_parameters(), *root.named_buffers()]
    }

    def forward(*given: Any, **named: Any) -> Any:
        return functional_call(root, state, given, named)

    recorder = Recorder(state.values())
    with left_untouched(root, (args, kwargs)), recorder.watching(units):
        return record_call(
            recorder,
            forward,
            (tuple(args), dict(kwargs or {})),
            label=type(root).__name__,
            attention=attention,
            kernels=kernels,
        )


def record_call(
    recorder: Recorder,
    call: Callable[..., Any],
    inputs: tuple[Sequence[Any], Mapping[str, Any]],
    *,
    label: str,
    attention: AttentionKind = "flash",
    kernels: KernelSet = "cuda",
) -> ForwardCost:
    """Runs `call` on meta copies of the inputs, which stay alive until the end as a caller's do."""
    args, kwargs = map_to_meta(inputs, recorder.known)
    for leaf in tree_iter((args, kwargs)):
        if isinstance(leaf, torch.Tensor):
            recorder.note(leaf)
    input_bytes = recorder.live_bytes
    with ExitStack() as modes:
        modes.enter_context(as_at_start())
        modes.enter_context(recorder)
        modes.enter_context(Kernels(recorder, attention=attention, kernels=kernels))
        try:
            output = call(*args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            raise ModelError(
                f"the forward of {label} cannot be followed without data "
                f"({_first_line(error)}): check the example inputs, or measure a real forward"
            ) from error
    output_bytes = recorder.live_bytes - input_bytes
    del output
    return ForwardCost(
        activation_bytes=recorder.peak_bytes,
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        unit_flops=tuple(recorder.unit_flops.items()),
        attention_flops=tuple(recorder.attention_flops.items()),
        rest_flops=recorder.rest_flops,
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _refuse_swapped(root: torch.nn.Module) -> None:
    """A swapped model's hooks would stream its blocks, and its weights are somewhere else."""
    if getattr(vars(root).get("blockswap"), "closed", True) is False:
        raise ModelError(
            f"this {type(root).__name__} is swapped: predict what its forward costs before "
            "swapping its blocks, or close the swap first"
        )
