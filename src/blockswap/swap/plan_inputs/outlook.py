"""Which workload, machine (by default the probed one), margin and dtype a prediction uses."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...adapters.live import LiveModel
from ...adapters.shape import geometry_of
from ...errors import ArgsError, GeometryError, OtherModelError
from ...layout.geometry import WanGeometry
from ...pieces import why_never
from ...plan import Foresight, UnitFacts
from ...plan.inputs.foresight import speeds_of
from ...plan.inputs.machine import Machine
from ...plan.inputs.margin import MARGIN, NO_MARGIN, Margin
from ...plan.inputs.pieces import InPieces, sizes_below
from ...plan.inputs.workload import ForwardCost, Workload, token_count
from ...predict import predict_forward, predict_in_pieces
from ...probe import cached_probe
from ...stream.device import Device


@dataclass(frozen=True, slots=True)
class Outlook:
    """A workload, and the machine it meets where that is not the one `blockswap probe` measured."""

    workload: Workload | ForwardCost
    machine: Machine


AnyWorkload = Workload | ForwardCost | Outlook


def foresee(
    live: LiveModel, given: AnyWorkload | None, device: Device, units: Sequence[UnitFacts] = ()
) -> Foresight | None:
    """What is known of a forward before the first one; None where no workload was given.

    A `Workload` is predicted for the model's geometry; a `ForwardCost` is taken as it is. `units`
    say what is decoded when it comes. Raises ArgsError for anything else, and
    GeometryError where a workload was given for a model that is not laid out as Wan's.
    """
    refuse_other_workloads(given)
    if given is None:
        return None
    workload = given.workload if isinstance(given, Outlook) else given
    machine = given.machine if isinstance(given, Outlook) else _probed(device)
    if isinstance(workload, Workload):
        geometry = _geometry_of(live)
        words, cost = workload.words, predict_forward(geometry, workload)
    else:
        geometry = None
        words, cost = "the forward that was announced", workload
    usual = NO_MARGIN if device.on_host else MARGIN
    margin = usual if machine is None else machine.kept_free
    return Foresight(
        workload=words,
        activation_bytes=cost.activation_bytes,
        margin_bytes=margin.of(cost.activation_bytes),
        speeds=speeds_of(cost, machine, _main_dtype(live), units),
        in_pieces=None if geometry is None else _in_pieces(live, geometry, workload, margin),
    )


def refuse_other_workloads(given: object) -> None:
    """Raises ArgsError for what says nothing of a forward."""
    inner = given.workload if isinstance(given, Outlook) else given
    if not isinstance(inner, Workload | ForwardCost | None):
        raise ArgsError(
            f"workload={inner!r} was given, which says nothing of a forward: give a Workload (the "
            "clip), what blockswap.predict.predict_module found, or an Outlook of either"
        )


def _geometry_of(live: LiveModel) -> WanGeometry:
    try:
        return geometry_of(live.root)
    except OtherModelError as error:
        raise GeometryError(
            f"a Workload was given for {live.layout.label}, and a clip says what Wan's models "
            "compute alone: follow one forward of this model with its own inputs instead, "
            "workload=blockswap.predict.predict_module(model, kwargs=inputs)"
        ) from error


def _in_pieces(
    live: LiveModel, geometry: WanGeometry, workload: Workload | ForwardCost, margin: Margin
) -> InPieces | None:
    """What the model needs in pieces; None where its blocks would run whole."""
    if not isinstance(workload, Workload) or why_never(live.root) is not None:
        return None
    clip, tokens = workload, token_count(geometry, workload)

    def activations(chunk_tokens: int) -> int:
        if chunk_tokens >= tokens:
            return predict_forward(geometry, clip).activation_bytes
        return predict_in_pieces(geometry, clip, chunk_tokens)

    return InPieces(sizes_below(tokens), activations, margin.of)


def _probed(device: Device) -> Machine | None:
    known = cached_probe(device.torch_device)
    return None if known is None else known.machine


def _main_dtype(live: LiveModel) -> str:
    """The dtype that most bytes of the blocks compute in."""
    sizes: Counter[str] = Counter()
    for unit in live.layout.units:
        for leaf in unit.leaves:
            if getattr(torch, leaf.dtype).is_floating_point:
                sizes[leaf.dtype] += leaf.nbytes
    return max(sizes, key=sizes.__getitem__, default="float32")
