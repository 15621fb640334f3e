"""Which workload, machine (by default the probed one), margin and dtype a prediction uses."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...adapters.live import LiveModel
from ...adapters.shape import geometry_of
from ...plan import Foresight, UnitFacts
from ...plan.inputs.foresight import speeds_of
from ...plan.inputs.machine import Machine
from ...plan.inputs.margin import MARGIN, NO_MARGIN
from ...plan.inputs.workload import ForwardCost, Workload
from ...predict import predict_forward
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
    say what is decoded when it comes. Raises
    GeometryError where a workload was given for a model that is not laid out as Wan's.
    """
    if given is None:
        return None
    workload = given.workload if isinstance(given, Outlook) else given
    machine = given.machine if isinstance(given, Outlook) else _probed(device)
    if isinstance(workload, Workload):
        words, cost = workload.words, predict_forward(geometry_of(live.root), workload)
    else:
        words, cost = "the forward that was announced", workload
    usual = NO_MARGIN if device.on_host else MARGIN
    margin = usual if machine is None else machine.kept_free
    return Foresight(
        workload=words,
        activation_bytes=cost.activation_bytes,
        margin_bytes=margin.of(cost.activation_bytes),
        speeds=speeds_of(cost, machine, _main_dtype(live), units),
    )


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
