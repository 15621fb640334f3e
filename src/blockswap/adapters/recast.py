"""In which dtypes weights of a live model arrive, where that is not the dtype they rest in."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..layout.values import TensorSpec
from ..store.leaves import dtype_name
from .live import LiveModel, LiveTensor, LiveUnit

# By a weight's name in the model.
Dtypes = Mapping[str, torch.dtype]


def in_dtypes(live: LiveModel, dtypes: Dtypes) -> LiveModel:
    """The model with the layouts that its units have once the named weights are cast.

    A store that is filled from such a unit casts. Weights of a tensor subclass stay as they are.
    """
    units = tuple(_unit(unit, dtypes) for unit in live.units)
    return replace(
        live, units=units, layout=replace(live.layout, units=tuple(u.layout for u in units))
    )


def without_data_in(live: LiveModel, dtypes: Dtypes) -> LiveModel:
    """The same for a model whose blocks hang on meta, and there say what they arrive in."""
    cast = in_dtypes(live, dtypes)
    units = tuple(
        replace(unit, tensors=tuple(_saying_so(tensor, dtypes) for tensor in unit.tensors))
        for unit in cast.units
    )
    return replace(cast, units=units)


def is_recast(unit: LiveUnit) -> bool:
    """Whether a weight of the unit rests in another dtype than the one it arrives in."""
    return any(
        tensor.spec.recipe is None
        and tensor.spec.leaves[0].dtype != dtype_name(tensor.tensor.dtype)
        for tensor in unit.tensors
    )


def _unit(unit: LiveUnit, dtypes: Dtypes) -> LiveUnit:
    tensors = tuple(_tensor(tensor, dtypes) for tensor in unit.tensors)
    layout = replace(unit.layout, tensors=tuple(tensor.spec for tensor in tensors))
    return replace(unit, tensors=tensors, layout=layout)


def _tensor(live: LiveTensor, dtypes: Dtypes) -> LiveTensor:
    wanted = dtypes.get(live.places[0].label)
    spec: TensorSpec = live.spec
    if wanted is None or spec.recipe is not None:
        return live
    leaf = replace(spec.leaves[0], dtype=dtype_name(wanted))
    return replace(live, spec=replace(spec, leaves=(leaf,)))


def _saying_so(live: LiveTensor, dtypes: Dtypes) -> LiveTensor:
    wanted = dtypes.get(live.places[0].label)
    if wanted is None:
        return live
    meta = torch.empty_like(live.tensor, dtype=wanted)
    return replace(live, tensor=torch.nn.Parameter(meta, requires_grad=False))
