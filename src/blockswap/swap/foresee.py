"""From a workload and a machine to what the planner takes: `swap` owns which model is meant."""

from collections import Counter

import torch

from ..adapters.live import LiveModel
from ..adapters.shape import geometry_of
from ..layout.geometry import WanGeometry
from ..plan import Foresight
from ..plan.foresight import speeds_of
from ..plan.machine import Machine
from ..plan.margin import MARGIN, NO_MARGIN
from ..plan.workload import ForwardCost, Workload
from ..predict import predict_forward
from ..probe import cached_probe
from ..stream.device import Device


def foresee(
    live: LiveModel,
    workload: Workload | ForwardCost | None,
    device: Device,
    *,
    geometry: WanGeometry | None = None,
    machine: Machine | None = None,
) -> Foresight | None:
    """What is known of a forward before the first one; None where no workload was given.

    A `Workload` is predicted for `geometry`, by default that of the live model; a `ForwardCost` is
    taken as it is. `machine` defaults to what `blockswap probe` has measured here.
    """
    if workload is None:
        return None
    words, cost = "the forward foreseen", workload
    if isinstance(workload, Workload):
        words = workload.words
        cost = predict_forward(geometry or geometry_of(live.root), workload)
    assert isinstance(cost, ForwardCost), "a workload has become a cost"
    if machine is None and (known := cached_probe(device.torch_device)) is not None:
        machine = known.machine
    usual = NO_MARGIN if device.on_host else MARGIN
    margin = usual if machine is None else machine.kept_free
    return Foresight(
        workload=words,
        activation_bytes=cost.activation_bytes,
        margin_bytes=margin.of(cost.activation_bytes),
        speeds=speeds_of(cost, machine, _main_dtype(live)),
    )


def _main_dtype(live: LiveModel) -> str:
    """The dtype that most bytes of the blocks compute in."""
    sizes: Counter[str] = Counter()
    for unit in live.layout.units:
        for leaf in unit.leaves:
            if getattr(torch, leaf.dtype).is_floating_point:
                sizes[leaf.dtype] += leaf.nbytes
    return max(sizes, key=sizes.__getitem__, default="float32")
