"""What a swapped pipeline and its models do in the place of their classes' own methods.

A call takes the stage first, a write to weights finds them in host memory, and what would move,
copy or offload behind the stage is refused.
"""

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch

from ..adapters.diffusers_seam import TAKING_CALL, WRITING_CALLS
from ..errors import StateError
from .stage import Member, Stage

# What pipelines call of their models beside the call itself.
_CALLS = ("encode", "decode", "generate", "get_text_features", "get_image_features")


def methods_of_model(kind: type, stage: Stage, member: Member) -> dict[str, Any]:
    """The methods of a model of class `kind` that takes turns as `member`."""
    calls = ["__call__", *(name for name in _CALLS if callable(getattr(kind, name, None)))]
    writes = [name for name, _, _ in WRITING_CALLS if callable(getattr(kind, name, None))]
    return {
        **{name: _taking_the_stage(kind, name, stage, member) for name in calls},
        **{name: _leaving_the_stage(kind, name, stage) for name in writes},
        "enable_group_offload": _refuse_offload,
        "__deepcopy__": _refuse_copy,
        "__reduce_ex__": _refuse_copy,
    }


def methods_of_pipeline(
    kind: type, stage: Stage, models: Mapping[str, torch.nn.Module]
) -> dict[str, Any]:
    """The methods of a pipeline of class `kind` whose `models` take turns."""
    return {
        "__call__": _one_at_a_time(kind, stage, frozenset(map(id, models.values()))),
        "_execution_device": property(lambda pipe: _execution_device(stage)),
        "to": _moving(stage),
        **_refusing_other_pipelines(kind),
        "enable_model_cpu_offload": _turns_already,
        "enable_sequential_cpu_offload": _refuse_offload,
        "enable_group_offload": _refuse_offload,
        "__deepcopy__": _refuse_copy,
        "__reduce_ex__": _refuse_copy,
    }


def _taking_the_stage(kind: type, name: str, stage: Stage, member: Member) -> Callable[..., Any]:
    followed = getattr(kind, "forward" if name == "__call__" else name)
    own: Callable[..., Any] = getattr(kind, name)

    @wraps(own)
    def call(model: Any, *args: Any, **kwargs: Any) -> Any:
        with stage.turn_of(member.name):
            if stage.rehearsal is not None:
                return stage.rehearsal.answer(member, model, followed, (args, kwargs))
            args, kwargs = stage.enter(member, model, followed, (args, kwargs))
            attempt = stage.attempt()
            try:
                return own(model, *args, **kwargs)
            except torch.OutOfMemoryError as error:
                attempt.failed(error)
                if not stage.make_room(member, model):
                    raise
            attempt.restore()  # outside: the error holds what the call had made
            return own(model, *args, **kwargs)

    return call


def _leaving_the_stage(kind: type, name: str, stage: Stage) -> Callable[..., Any]:
    """Writes to weights: a copy of them on the device would hide what was written."""
    own: Callable[..., Any] = getattr(kind, name)

    @wraps(own)
    def write(model: Any, *args: Any, **kwargs: Any) -> Any:
        stage.clear()
        return own(model, *args, **kwargs)

    return write


def _one_at_a_time(kind: type, stage: Stage, known: frozenset[int]) -> Callable[..., Any]:
    own: Callable[..., Any] = kind.__call__

    @wraps(own)
    def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        if stage.rehearsal is not None:
            return own(pipe, *args, **kwargs)
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module) and id(part) not in known:
                raise StateError(
                    f"{name} of this {kind.__name__} is another model than when it was swapped, "
                    "and has no turn on the device: close the swap, then swap the pipeline as it "
                    "is now"
                )
        with stage.call_of(kind.__name__):
            return own(pipe, *args, **kwargs)

    return call


def _refusing_other_pipelines(kind: type) -> dict[str, property]:
    """The parts, for everyone but who makes another pipeline of them: it would cast them, and
    take no model whose class is not exactly the one that it knows."""
    own = getattr(kind, "components", None)
    if not isinstance(own, property) or own.fget is None:
        return {}
    given = own.fget

    def components(pipe: Any) -> Any:
        if sys._getframe(1).f_code.co_name == TAKING_CALL:
            raise StateError(
                f"another pipeline was to be made of the parts of this {kind.__name__} (from_pipe) "
                "while they take turns on the device: close the swap, make it, then swap that one"
            )
        return given(pipe)

    return {"components": property(components)}


def _execution_device(stage: Stage) -> torch.device:
    return stage.device if stage.rehearsal is None else torch.device("cpu")


def _moving(stage: Stage) -> Callable[..., Any]:
    def to(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        """A move to the device of the swap is done already; any other is refused."""
        device = _execution_device(stage)
        asked = [*args, *kwargs.values()]
        others = [torch.device(a) for a in asked if isinstance(a, (str, torch.device))]
        casts = any(isinstance(a, torch.dtype) for a in asked)
        if casts or any(
            other.type != device.type or other.index not in (None, device.index) for other in others
        ):
            raise StateError(
                f"this pipeline was to be moved or cast ({', '.join(map(str, asked))}) while its "
                f"models take turns on {device}: close the swap before"
            )
        return pipe

    return to


def _turns_already(pipe: Any, *args: Any, **kwargs: Any) -> None:
    """`enable_model_cpu_offload`: one whole model at a time, which is so already."""


def _refuse_offload(pipe: Any, *args: Any, **kwargs: Any) -> None:
    raise StateError(
        "another way to offload was to be switched on for a pipeline whose models take turns on "
        "the device: leave it, or close the swap first"
    )


def _refuse_copy(owner: Any, *_: Any) -> Any:
    raise StateError(
        f"a copy of this {type(owner).__name__} was asked for, or it was to be pickled, while the "
        "models of its pipeline take turns on the device: close the swap, then do it"
    )
