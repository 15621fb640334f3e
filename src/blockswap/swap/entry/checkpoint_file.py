"""`open_transformer`: a model streamed from its file; checks, assumptions, order of opening."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...adapters.adapted import fit_model, with_loras
from ...adapters.live import places_of
from ...adapters.skeleton import build_skeleton
from ...adapters.stored import StoredModel, match_checkpoint
from ...ambient import undisturbed
from ...errors import GeometryError
from ...layout.checkpoint import Checkpoint, checkpoint_of, open_checkpoint
from ...layout.formats import quantiser_keys, unpacked
from ...layout.geometry import infer_geometry, name_variant, to_original_key
from ...layout.geometry.families import saying_where_a_config_goes
from ...layout.geometry.joined import joined
from ...layout.geometry.stated import stated_by
from ...layout.header import read_header
from ...layout.model_folder import weight_files
from ...lora.file import LoraFile, open_lora
from ...lora.request import AnyLora, Lora, as_loras
from ...paths import input_path
from ...plan import SwapPlan
from ...ranks.group import ranks_of
from ...selection import BlockSwapArgs
from ...stream.device import Device, open_device
from ..opening.found_model import FoundModel, open_planned, plan_found
from ..plan_inputs.outlook import AnyWorkload
from .arguments import as_args, refuse_dtype, refuse_swapped
from .host_library import (
    AnyPath,
    Source,
    found_in,
    relative_of_library,
    source_of,
    transformer_of_library,
)
from .loaded_model import Asked
from .on_ranks import open_shared


@undisturbed()
def open_transformer(  # noqa: PLR0913 - all but two by name: the door is one call
    path: AnyPath,
    args: BlockSwapArgs | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device,
    dtype: torch.dtype | None = None,
    skeleton: torch.nn.Module | None = None,
    workload: AnyWorkload | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    config: str | os.PathLike[str] | None = None,
    loras: Sequence[AnyLora] | None = None,
    mesh: Any = None,
) -> torch.nn.Module:
    """Opens a checkpoint with its blocks streamed from the file; reads only what stays.

    `path` is a `.safetensors` file, an index, or a folder. Of a Wan model, in original or
    diffusers names, it is diffusers' Wan class for the file's geometry. Any other model of
    diffusers is opened from the folder that `save_pretrained` writes or from a pipeline's (its
    `transformer`, or `subfolder`; `variant` such as "fp16"), or from a single file in its vendor's
    names with `config`, the folder of its config.json. Or `skeleton`: a module of yours with its
    parameters on the meta device. A list of files is a model's and those of modules that go onto
    it: `["wan2.1_t2v_14B.safetensors", "vace_module.safetensors"]`. Without `dtype` it computes in
    the dtype that most of the file has, bit for bit as diffusers' `from_pretrained(torch_dtype=)`
    of that dtype (layers of your own: in what is stored); with it, weights are cast on the device
    each time they arrive. (On the CPU: as a model whose weights are in memory of their own; those
    that diffusers maps lie at offsets of 4 or 8 bytes, where fp32 kernels may round otherwise.)
    `workload` and `loras` are those of `swap_blocks`.

    With a `mesh` every rank of it makes this call: the file is read once a host, into memory that
    all ranks of the host share, as it computes (LoRAs merged), and blocks are streamed from there.
    Where that is more than is free, or than a `ram_budget`, blocks stay in the file, as stored: a
    forward reads each once a host, every rank its part.

    The model's `blockswap` attribute is its `Swap`: plan, report, `close()`. Raises
    CheckpointError, ArgsError, ModelError, PlanError or DeviceError.
    """
    source = source_of(path, subfolder, variant, config)
    if mesh is not None:
        ranks = ranks_of(mesh)
        with ranks.together("open the checkpoint"):
            wanted, where = as_args(args), open_device(device)
            asked = Request(dtype, skeleton, workload, as_loras(loras))
            found = find_model(source, wanted, where, asked)
        swapped = Asked(wanted, where, workload)
        return open_shared(found, ranks, swapped, opener="open_transformer")
    wanted, where = as_args(args), open_device(device)
    asked = Request(dtype=dtype, skeleton=skeleton, workload=workload, loras=as_loras(loras))
    return open_planned(find_model(source, wanted, where, asked), where)


@undisturbed()
def plan_transformer(
    path: AnyPath,
    args: BlockSwapArgs | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device,
    dtype: torch.dtype | None = None,
    workload: AnyWorkload | None = None,
    loras: Sequence[AnyLora] | None = None,
) -> SwapPlan:
    """The plan that `open_transformer` would carry out now; raises what it would, opens nothing."""
    asked = Request(dtype=dtype, workload=workload, loras=as_loras(loras))
    return plan_found(find_model(source_of(path), as_args(args), open_device(device), asked))


def empty_transformer(path: AnyPath, *, device: str | torch.device) -> Any:
    """The model that `open_transformer` would open, on the meta device in the dtypes it will have.

    Only headers are read. It can be given to `open_transformer` as its skeleton. Raises as it does.
    """
    found = find_model(source_of(path), as_args(None), open_device(device), Request())
    return found.model.live.root


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked of a checkpoint's model beside how it is swapped; see `open_transformer`."""

    dtype: torch.dtype | None = None
    skeleton: torch.nn.Module | None = None
    workload: AnyWorkload | None = None
    loras: tuple[Lora, ...] = ()


def find_model(source: Source, wanted: BlockSwapArgs, where: Device, asked: Request) -> FoundModel:
    """Matches a checkpoint with its model, and gathers what a plan for it is made of.

    Raises ArgsError, CheckpointError or ModelError.
    """
    refuse_dtype(asked.dtype)
    if asked.skeleton is not None:
        refuse_swapped(asked.skeleton)
    files = [open_lora(lora) for lora in asked.loras]
    checkpoint, model, assumed = _weights(source, wanted, asked)

    def with_files(files: Sequence[LoraFile]) -> Callable[[], FoundModel]:
        own, behind = model, checkpoint
        notes: tuple[str, ...] = ()
        if files:
            fitted = fit_model(model.live, files)
            own, behind = with_loras(model, checkpoint, fitted)
            notes = fitted.sentences

        def find() -> FoundModel:
            own.live.hang()
            hanging = replace(own, live=own.live.as_it_hangs())
            found = found_in(behind, hanging, wanted, where, asked.workload, notes)
            return replace(found, assumed=assumed, loras=tuple(files), with_loras=others)

        return find

    def others(loras: tuple[Lora, ...]) -> Callable[[], FoundModel]:
        return with_files([open_lora(lora) for lora in loras])

    return with_files(files)()


def _weights(
    source: Source, wanted: BlockSwapArgs, asked: Request
) -> tuple[Checkpoint, StoredModel, tuple[str, ...]]:
    """The checkpoint, its model, and what had to be assumed."""
    if asked.skeleton is None:
        hosted = transformer_of_library(source, asked.dtype, wanted.block_lists)
        if hosted is not None:
            return (*hosted, hosted[0].notes)
    files = [_wan_checkpoint(source), *map(open_checkpoint, source.modules)]
    checkpoint = joined([_as_weights(file, asked.skeleton) for file in files])
    if asked.skeleton is None:
        relative = relative_of_library(checkpoint, asked.dtype, wanted.block_lists)
        if relative is not None:
            return checkpoint, relative, checkpoint.notes
    model, assumed = _matched(checkpoint, asked.skeleton, asked.dtype, wanted.block_lists)
    return checkpoint, model, assumed


def _wan_checkpoint(source: Source) -> Checkpoint:
    """Of a folder the variant that was asked for."""
    place = source.place("transformer")
    if source.variant is None:
        return open_checkpoint(place)
    found = weight_files(input_path(place), source.variant)
    return checkpoint_of(found, tuple(map(read_header, found.files)))


def _as_weights(checkpoint: Checkpoint, skeleton: torch.nn.Module | None) -> Checkpoint:
    """The file as weights; as it is where layers of the skeleton's own know what quantised it."""
    beside = quantiser_keys(checkpoint)
    if skeleton is not None and beside:
        known = {to_original_key(place.label) for place in places_of(skeleton)}
        if any(to_original_key(key) in known for key in beside):
            return checkpoint
    return unpacked(checkpoint)


def _matched(
    checkpoint: Checkpoint,
    skeleton: torch.nn.Module | None,
    dtype: torch.dtype | None,
    block_lists: Sequence[str],
) -> tuple[StoredModel, tuple[str, ...]]:
    """The skeleton with the checkpoint behind it, and what had to be assumed about it."""
    assumed = checkpoint.notes
    if skeleton is None:
        with saying_where_a_config_goes("config="):
            geometry = infer_geometry(checkpoint)
        if geometry.extras:
            raise GeometryError(
                f"{checkpoint.label} is quantised ({len(geometry.extras)} scales such as "
                f"{geometry.extras[0]}), and diffusers' Wan class computes without scales: open a "
                "bf16, fp16 or fp32 checkpoint, or give a skeleton that knows the scales"
            )
        skeleton = build_skeleton(geometry)
        if name_variant(geometry) is None and not stated_by(checkpoint).says_heads:
            assumed += (
                f"{checkpoint.label} is no published model and does not state its heads: "
                f"{geometry.num_heads} of {geometry.head_dim} are assumed, as wide as Wan's (put "
                "wan.num_heads in its metadata otherwise)",
            )
    return match_checkpoint(skeleton, checkpoint, dtype, block_lists), assumed
