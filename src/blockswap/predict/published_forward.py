"""A forward of a class of diffusers beside Wan's: what a pipeline gives it, run without data."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..errors import ModelError
from ..plan.inputs.workload import ForwardCost, Workload
from ..published import Family, Made, arguments_of
from .cache import count, library_versions, remembered
from .transformer import WAY, cost_of

# What a forward runs into that wants other arguments.
_OTHERWISE = (TypeError, ValueError, KeyError, AttributeError, IndexError)


def predict_published_forward(
    family: Family, config: Mapping[str, Any], clip: Workload
) -> ForwardCost:
    """What one forward costs: from the cache, else followed now.

    `config` is what differs from the defaults of the class. Raises ArgsError where the clip is cut
    for another family, ModelError where diffusers is absent or the class cannot be followed.
    """
    cost: ForwardCost = remembered(
        _question("transformer of diffusers", family, config, clip),
        lambda: asdict(follow_library_forward(family, config, clip)),
        cost_of,
    )
    return cost


def predict_published_in_pieces(
    family: Family, config: Mapping[str, Any], clip: Workload, chunk_tokens: int
) -> int:
    """Bytes of activations in pieces of at most so many tokens. Raises as the forward's does."""
    question = _question("transformer of diffusers in pieces", family, config, clip)
    nbytes: int = remembered(
        question | {"chunk_tokens": chunk_tokens, "way": WAY},
        lambda: follow_library_in_pieces(family, config, clip, chunk_tokens),
        count,
    )
    return nbytes


def _question(
    kind: str, family: Family, config: Mapping[str, Any], clip: Workload
) -> dict[str, Any]:
    return {
        "kind": kind,
        "class": family.class_name,
        "config": {name: repr(value) for name, value in sorted(config.items())},
        "arguments": repr(family.arguments),
        "workload": asdict(clip),
        "libraries": library_versions("torch", "diffusers"),
    }


def follow_library_forward(
    family: Family, config: Mapping[str, Any], clip: Workload
) -> ForwardCost:
    """The same, followed. Raises as `predict_published_forward` does."""
    from ..adapters.hosts.empty_models import empty_model

    return _follow(family, empty_model(family.class_name, config, _torch_dtype(clip.dtype)), clip)


def follow_library_in_pieces(
    family: Family, config: Mapping[str, Any], clip: Workload, chunk_tokens: int
) -> int:
    """Bytes of activations, followed; of each size two pieces run."""
    from ..adapters.hosts.empty_models import empty_model
    from ..pieces import Pieces
    from .wan import refuse_whole

    model = empty_model(family.class_name, config, _torch_dtype(clip.dtype))
    pieces = Pieces(model, chunk_tokens, refuse_whole, samples=True)
    try:
        return _follow(family, model, clip).activation_bytes
    finally:
        pieces.remove()


def _follow(family: Family, model: Any, clip: Workload) -> ForwardCost:
    from .module import predict_module

    try:
        return predict_module(
            model,
            kwargs=library_inputs(family, model.config, clip),
            attention=clip.attention,
            kernels=clip.kernels,
        )
    except _OTHERWISE as error:
        raise ModelError(
            f"the forward of this {family.class_name} does not take what its pipeline is known to "
            f"give ({(str(error).splitlines() or [type(error).__name__])[0]}): its configuration "
            "is of another model, or diffusers of another version"
        ) from error


def library_inputs(family: Family, config: Mapping[str, Any], clip: Workload) -> dict[str, Any]:
    """The arguments of a forward on meta; real tensors where the forward asks for their values.

    `config` is the whole of the model's.
    """
    given = arguments_of(family, config, clip)
    return {name: made(one, clip.dtype) for name, one in given.items()} | {"return_dict": False}


def made(wanted: Any, computed: str) -> Any:
    """Tensors for the records of a nest."""
    if isinstance(wanted, list | tuple):
        return type(wanted)(made(one, computed) for one in wanted)
    if not isinstance(wanted, Made):
        return wanted
    import torch

    dtype, shape = _torch_dtype(wanted.dtype or computed), [int(size) for size in wanted.shape]
    if wanted.filled is not None:
        return getattr(torch, wanted.filled)(shape, dtype=dtype)
    return torch.empty(shape, dtype=dtype, device="meta")


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)
