"""A model of diffusers or transformers, found but not opened; its plan here or elsewhere."""

import os
from dataclasses import dataclass, replace

import torch

from ...layout.model_folder import ModelFolder
from ...plan import SwapPlan, make_plan
from ...plan.inputs.machine import Machine
from ...predict.recorder import GRANULARITY_BYTES
from ...selection import BlockSwapArgs
from ...stream.device import best_device, open_device
from ..opening.found_model import FoundModel, plan_found
from .checkpoint_file import Request, find_model
from .host_library import Source
from .text_encoder import find_encoder


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A machine that is not at hand, and its free memory in bytes (None: not known)."""

    machine: Machine
    device_free_bytes: int | None
    host_free_bytes: int | None


def find_library_model(
    path: str | os.PathLike[str],
    folder: ModelFolder,
    args: BlockSwapArgs | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
) -> FoundModel:
    """The model that `open_transformer` or `open_text_encoder` would open on this machine.

    `folder` is the one whose config names its class. Only headers are read. Raises as they do.
    """
    source, wanted = Source(path, config=config), args or BlockSwapArgs()
    computed = None if dtype is None else getattr(torch, dtype)
    where = open_device(best_device())
    if folder.package == "transformers":
        return find_encoder(source, wanted, where, computed, None)
    return find_model(source, wanted, where, Request(dtype=computed))


def plan_library_model(found: FoundModel, elsewhere: Elsewhere | None = None) -> SwapPlan:
    """The plan for it, here or on a machine that is not at hand. Raises PlanError."""
    if elsewhere is None:
        return plan_found(found)
    basis, machine = found.basis, elsewhere.machine
    facts = replace(
        basis.facts,
        device=machine.name,
        on_host=machine.on_host,
        device_free_bytes=elsewhere.device_free_bytes,
        host_free_bytes=elsewhere.host_free_bytes,
        granularity=GRANULARITY_BYTES,
    )
    return make_plan(facts, basis.selection, basis.args)
