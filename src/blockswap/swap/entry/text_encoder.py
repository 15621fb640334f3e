"""`open_text_encoder`: a text encoder streamed from its folder or file."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from ...ambient import undisturbed
from ...plan import SwapPlan
from ...plan.choice.budgets import ram_room
from ...ranks.group import ranks_of
from ...selection import BlockSwapArgs
from ...stream.device import Device, open_device
from ..opening.found_model import FoundModel, open_found, plan_found
from ..plan_inputs.outlook import AnyWorkload
from .arguments import as_args, refuse_dtype
from .host_library import Source, encoder_of_library, found_in
from .loaded_model import Asked
from .on_ranks import open_shared


@undisturbed()
def open_text_encoder(  # noqa: PLR0913 - what is opened, and how
    path: str | os.PathLike[str],
    args: BlockSwapArgs | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device,
    dtype: torch.dtype | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    config: str | os.PathLike[str] | None = None,
    workload: AnyWorkload | None = None,
    mesh: Any = None,
) -> torch.nn.Module:
    """Opens a text encoder of transformers with its blocks streamed from the file.

    `path` is the folder that `save_pretrained` writes, a pipeline's folder (its `text_encoder`, or
    `subfolder`), or a single `.safetensors` file of a T5 or UMT5 encoder in the names of
    transformers, ComfyUI or Wan-Video; of any other single file `config` is the folder of its
    config.json. `variant` is one of the folder's ("fp16"). The model is the class that the config
    names, bit for bit as its `from_pretrained(dtype=...)`; without `dtype` in the dtype that most
    of the file has.

    A large embedding table is not loaded: a forward reads the rows of its prompt. `mesh` as in
    `open_transformer`: all ranks open it, and it rests once for those of a host. The model's
    `blockswap` attribute is its `Swap`. Raises CheckpointError, ArgsError, ModelError, PlanError or
    DeviceError.
    """
    source = Source(path, subfolder, variant, config)
    if mesh is not None:
        ranks = ranks_of(mesh)
        with ranks.together("open the text encoder"):
            wanted, where = as_args(args), open_device(device)
            found = find_encoder(source, wanted, where, dtype, workload)
        asked = Asked(wanted, where, workload)
        return open_shared(found, ranks, asked, opener="open_text_encoder")
    wanted, where = as_args(args), open_device(device)
    found = find_encoder(source, wanted, where, dtype, workload)
    plan = plan_found(found)
    spare = ram_room(plan, found.basis.facts, found.basis.selection, wanted)
    return open_found(found, plan, where, spare_ram=spare, opener="open_text_encoder")


@undisturbed()
def plan_text_encoder(
    path: str | os.PathLike[str],
    args: BlockSwapArgs | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device,
) -> SwapPlan:
    """The plan that `open_text_encoder` would carry out now; raises as it does, opens nothing."""
    wanted, where = as_args(args), open_device(device)
    return plan_found(find_encoder(Source(path), wanted, where, None, None))


def find_encoder(
    source: Source,
    wanted: BlockSwapArgs,
    where: Device,
    dtype: torch.dtype | None,
    workload: AnyWorkload | None,
) -> FoundModel:
    """Matches a text encoder's files with its class, and gathers what a plan for it is made of.

    Raises ArgsError, CheckpointError or ModelError.
    """
    refuse_dtype(dtype)
    checkpoint, model = encoder_of_library(source, dtype, wanted.block_lists)
    return found_in(checkpoint, model, wanted, where, workload)
