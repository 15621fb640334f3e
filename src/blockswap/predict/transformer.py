"""What a forward of a Wan geometry costs: from the cache, else run once without data.

Importing this module needs no torch; torch and diffusers are loaded when the cache has no answer.
"""

from dataclasses import asdict, fields
from typing import Any

from ..layout.geometry import WanGeometry
from ..plan.inputs.workload import ForwardCost, Workload, latent_size
from .cache import count, counts, library_versions, remembered

_NO_SHAPE = ("naming", "extras", "unused", "eps")  # fields that no tensor of a forward shows

WAY = 2  # how a forward runs in pieces; counted up when that changes what is alive

_LISTED = ("unit_flops", "attention_flops")  # of pairs; all else is a count


def predict_forward(geometry: WanGeometry, workload: Workload) -> ForwardCost:
    """What one forward of diffusers' class of this geometry costs for the workload.

    The whole depth is followed: VACE hints add up, so a shallow model would not do. Raises
    ArgsError where the model cannot cut the clip, ModelError where diffusers is needed and absent.
    """
    latent_size(geometry, workload)  # refuses at the door
    question = _question("transformer", geometry, workload)

    def follow() -> dict[str, Any]:
        from .wan import follow_forward

        return asdict(follow_forward(geometry, workload))

    cost: ForwardCost = remembered(question, follow, cost_of)
    return cost


def predict_in_pieces(geometry: WanGeometry, workload: Workload, chunk_tokens: int) -> int:
    """Bytes of activations where blocks run in pieces of at most so many tokens.

    Its FLOPs are those of `predict_forward`. Raises as that does.
    """
    latent_size(geometry, workload)  # refuses at the door
    question = {
        **_question("transformer in pieces", geometry, workload),
        "chunk_tokens": chunk_tokens,
        "way": WAY,
    }

    def follow() -> int:
        from .wan import follow_in_pieces

        return follow_in_pieces(geometry, workload, chunk_tokens)

    nbytes: int = remembered(question, follow, count)
    return nbytes


def _question(kind: str, geometry: WanGeometry, workload: Workload) -> dict[str, Any]:
    """All that the answer depends on, as JSON takes it."""
    return {
        "kind": kind,
        "geometry": {k: value for k, value in asdict(geometry).items() if k not in _NO_SHAPE},
        "workload": asdict(workload),
        "libraries": library_versions("torch", "diffusers"),
    }


def cost_of(kept: dict[str, Any]) -> ForwardCost:
    """The value that `asdict` and JSON have taken apart."""
    listed = {
        field: tuple((str(name), count(flops)) for name, flops in kept[field]) for field in _LISTED
    }
    figures = {name: value for name, value in kept.items() if name not in _LISTED}
    names = (field.name for field in fields(ForwardCost) if field.name not in _LISTED)
    told: dict[str, Any] = {**counts(figures, names), **listed}
    return ForwardCost(**told)
