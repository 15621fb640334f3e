"""The byte counts of a published model beside Wan's, from its class built without data."""

from ..layout.slab import pack
from ..layout.values import Leaf, ModelLayout, TensorSpec
from ..plan import UnitFacts
from ..predict.subject import PublishedSubject
from ..published import Published
from .figures import ModelFigures


def figures_of_published(published: Published, dtype: str) -> ModelFigures:
    """What computes in `dtype`, but for what the class keeps in fp32. Raises ModelError."""
    layout = _layout(published, dtype)
    units = []
    for unit in layout.units:
        nbytes = pack(unit.leaves).nbytes
        units.append(UnitFacts(unit.name, unit.kind, nbytes, nbytes, nbytes))
    return ModelFigures(
        label=published.name,
        subject=PublishedSubject(published.family, published.config),
        layout=layout,
        dtype=dtype,
        units=tuple(units),
        rest_bytes=pack(_leaves(layout.rest)).nbytes,
        loaded_units=tuple(unit.loaded() for unit in units),
    )


def _layout(published: Published, dtype: str) -> ModelLayout:
    import torch

    from ..adapters.hosts.empty_models import empty_model
    from ..adapters.live import describe_module

    class_name = published.family.class_name
    model = empty_model(class_name, published.config, getattr(torch, dtype))
    return describe_module(model).layout


def _leaves(specs: tuple[TensorSpec, ...]) -> list[Leaf]:
    return [leaf for spec in specs for leaf in spec.leaves]
