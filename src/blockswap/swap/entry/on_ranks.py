"""A checkpoint opened by all ranks of a mesh: what must be the same, and where its blocks rest."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from ...ranks.group import Ranks, ranks_of
from ...ranks.same_model import refuse_other_files, refuse_other_loras, refuse_other_models
from ...ranks.shared_weights import SharedWeights, shared_bytes
from ...report.rank_table import RankSummary
from ...selection import BlockSwapArgs
from ...store.host_memory import free_host_bytes
from ...stream.device import Device
from ..opening.found_model import FoundModel, open_found, plan_found
from ..opening.rank_parts import agreed_basis, refuse_other_plans
from ..opening.shared_file import SharedLoras, share_file
from ..running.handle import Swap
from .loaded_model import Asked, swap_shared


def open_shared(found: FoundModel, ranks: Ranks, asked: Asked, *, opener: str) -> torch.nn.Module:
    """The model, swapped. Every rank must call it; raises on all of them or on none.

    `opener`: what is called to open it again.
    """
    root = found.model.live.root
    if not blocks_stay_in_file(ranks, [found], asked.wanted):
        weights = share_file(found, ranks, asked.where)
        loras = loras_of(found, ranks, weights, asked.where)
        swap_shared(root, ranks, weights, asked, loras)
        return root
    found = replace(found, basis=agreed_basis(ranks, found.basis))
    with ranks.together("plan"):
        plan = plan_found(found)
    refuse_other_plans(ranks, plan)
    with ExitStack() as undo:
        with ranks.together("open the model"):
            open_found(found, plan, asked.where, spare_ram=0, opener=opener, ranks=ranks)
            opened: Any = root.blockswap
            undo.callback(opened.close)
        undo.pop_all()
    return root


def loras_of(
    found: FoundModel, ranks: Ranks, weights: SharedWeights, where: Device
) -> SharedLoras | None:
    """What merges other LoRAs into the shared weights of a file's model, if any can be."""
    return None if found.with_loras is None else SharedLoras(found, ranks, weights, where)


def report_of_ranks(swap: Swap, mesh: Any) -> RankSummary:
    """The reports of all ranks of `mesh` as one. Every rank must call it, between forwards."""
    ranks = ranks_of(mesh)
    places = list(dict.fromkeys(ranks.hosts))
    hosts = {r: places.index(host) for r, host in zip(ranks.ranks, ranks.hosts, strict=True)}
    return RankSummary(ranks.agree("report", swap.report()), hosts)


def blocks_stay_in_file(ranks: Ranks, models: Sequence[FoundModel], wanted: BlockSwapArgs) -> bool:
    """Whether the weights of `models` are more than host memory, or a `ram_budget`, holds.

    The same on all ranks. Raises ModelError where they were given other files, LoRAs or models.
    """
    for found in models:
        refuse_other_files(ranks, found.checkpoint.headers)
        refuse_other_loras(ranks, [file.asked for file in found.loras])
        refuse_other_models(ranks, found.model.live)
    nbytes = sum(shared_bytes(found.model.live) for found in models)
    limits = (free_host_bytes(), wanted.ram_budget_bytes)
    beyond = any(limit is not None and nbytes > limit for limit in limits)
    told = ranks.agree("find whether the weights fit in host memory", beyond)
    return any(told.values())
