"""`open_transformer`: a transformer that runs from its checkpoint file, never whole anywhere."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from ..adapters.live import LiveTensor, LiveUnit
from ..adapters.skeleton import build_skeleton
from ..adapters.stored import StoredModel, match_checkpoint
from ..errors import ArgsError, GeometryError
from ..layout.checkpoint import Checkpoint, open_checkpoint
from ..layout.geometry import infer_geometry, name_variant
from ..layout.geometry.stated import stated_by
from ..layout.values import contiguous_stride
from ..plan import make_plan
from ..selection import BlockSwapArgs, select
from ..store.disk import DiskStore, DiskUnit
from ..store.landing import Landing
from ..store.ram import RamStore
from ..store.readers import Piece
from ..stream.device import open_device
from ..stream.hooks import Hooks
from ..stream.streamer import StreamedUnit
from ..stream.transfer import DirectRead, StagedCopy, Transfer
from .assemble import (
    Parts,
    decoded_values,
    ensure_staging,
    idle_binding,
    make_parts,
    ram_unit,
    start_engine,
    unit_views,
)
from .closed import refuse_closed, reopened
from .facts import decoded_leaves, extents_of, facts_of_checkpoint
from .foresee import AnyWorkload, foresee
from .loading import Loader
from .module import UNLIMITED, as_args, refuse_swapped
from .place import hang_on_device, host_leaves


def open_transformer(
    path: str | os.PathLike[str],
    args: BlockSwapArgs | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device,
    dtype: torch.dtype | None = None,
    skeleton: torch.nn.Module | None = None,
    workload: AnyWorkload | None = None,
) -> torch.nn.Module:
    """Opens a Wan checkpoint with its blocks streamed from the file; reads only what stays.

    `path` is a `.safetensors` file, an index, or a folder, in original or diffusers names. The
    model is diffusers' Wan class for the file's geometry, or `skeleton`: a module of yours with
    its parameters on the meta device. Without `dtype` every tensor computes in the dtype it is
    stored in; with it, weights are cast on the device each time they arrive. `workload` is that of
    `swap_blocks`.

    The model's `blockswap` attribute is its `Swap`: plan, report, `close()`. Raises
    CheckpointError, ArgsError, ModelError, PlanError or DeviceError.
    """
    wanted = as_args(args)
    where = open_device(device)
    _check_dtype(dtype)
    if skeleton is not None:
        refuse_swapped(skeleton)
    checkpoint = open_checkpoint(path)
    model, assumed = _matched(checkpoint, skeleton, dtype)
    facts = facts_of_checkpoint(model, where)
    foresight = foresee(model.live, workload, where)
    plan = make_plan(facts, select(wanted, model.live.layout), wanted, foresight)
    with ExitStack() as undo, torch.inference_mode(False), torch.no_grad():
        parts = make_parts(model.live, plan, where, undo)
        opening = Opening(parts, model, checkpoint)
        opening.load_rest()
        opening.load_residents()
        streamed = opening.ram_units() | opening.disk_units()
        swap, hooks = start_engine(parts, streamed, debug=wanted.block_swap_debug)
        opening.refuse_saving(hooks)
        reopened(model.live.root)
        closing = ExitStack()
        closing.callback(refuse_closed, model.live.root, checkpoint.label)
        closing.push(undo.pop_all())
        told = [lambda: assumed, lambda: tuple(parts.pool.sentences), opening.reading_sentences]
        swap.keep(closing, told)
    return model.live.root


def _check_dtype(dtype: object) -> None:
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return
    raise ArgsError(
        f"dtype={dtype!r} was asked, and weights compute in floating point: give a torch dtype "
        "such as torch.bfloat16, or none for the file's own"
    )


def _matched(
    checkpoint: Checkpoint, skeleton: torch.nn.Module | None, dtype: torch.dtype | None
) -> tuple[StoredModel, tuple[str, ...]]:
    """The skeleton with the checkpoint behind it, and what had to be assumed about it."""
    assumed: tuple[str, ...] = ()
    if skeleton is None:
        geometry = infer_geometry(checkpoint)
        if geometry.extras:
            raise GeometryError(
                f"{checkpoint.label} is quantised ({len(geometry.extras)} scales such as "
                f"{geometry.extras[0]}), and diffusers' Wan class computes without scales: open a "
                "bf16, fp16 or fp32 checkpoint, or give a skeleton that knows the scales"
            )
        skeleton = build_skeleton(geometry)
        if name_variant(geometry) is None and stated_by(checkpoint).num_heads is None:
            assumed = (
                f"{checkpoint.label} is no published model and does not state its heads: "
                f"{geometry.num_heads} of {geometry.head_dim} are assumed, as wide as Wan's (put "
                "wan.num_heads in its metadata otherwise)",
            )
    return match_checkpoint(skeleton, checkpoint, dtype), assumed


class Opening:
    """The steps of opening a checkpoint, in order."""

    def __init__(self, parts: Parts, model: StoredModel, checkpoint: Checkpoint) -> None:
        self._parts = parts
        self._model = model
        self._source = ", ".join(str(path) for path in checkpoint.paths)
        self._headers = checkpoint.headers
        self._loader = Loader(model, self._headers, parts.pool.readers)
        self._store: DiskStore | None = None

    def load_rest(self) -> None:
        """Reads what lies outside the units, and puts it and all computed buffers in place."""
        rest = self._parts.live.rest
        stored = [t for t in rest if self._model.stored_form(t) is not None]
        computed = [t for t in rest if self._model.stored_form(t) is None]
        self._hang("the rest of the model", stored)
        if not self._parts.device.on_host:
            hang_on_device(self._parts.undo, computed, host_leaves(computed), self._parts.device)

    def load_residents(self) -> None:
        for unit in self._units("resident"):
            self._hang(unit.layout.name, unit.tensors)

    def ram_units(self) -> dict[str, StreamedUnit]:
        """Reads the RAM tier into pinned memory, in compute form."""
        parts, units = self._parts, self._units("ram")
        store = RamStore([u.layout for u in units], lender=parts.device, pin_budget=UNLIMITED)
        bindings = []
        for index, unit in enumerate(units):
            parts.undo.callback(store.give_back, index)
            homes = store.fill(index, self._loader.read(unit.layout.name, unit.tensors))
            binding = idle_binding(unit)
            parts.undo.callback(binding.rest_on, [t.tensor for t in unit.tensors])
            # `.data` has a version counter of its own; views of one chunk share theirs.
            binding.rest_on([torch.nn.Parameter(home.data, requires_grad=False) for home in homes])
            bindings.append(binding)
        ensure_staging(
            parts, store, max((store.slab_bytes(i) for i in range(len(units))), default=0)
        )
        streamed = {}
        for index, unit in enumerate(units):
            streamed[unit.layout.name] = ram_unit(parts, store, index, unit, bindings[index])
        return streamed

    def disk_units(self) -> dict[str, StreamedUnit]:
        """Opens the files for streaming. A unit on disk shows meta tensors between forwards."""
        units = self._units("disk")
        if not units:
            return {}
        self._store = DiskStore(
            self._headers,
            [DiskUnit(u.layout.name, extents_of(self._model, u)) for u in units],
        )
        self._parts.undo.callback(self._store.close)
        self._parts.pool.files = self._store
        # Readers must have stopped before their files are closed under them.
        self._parts.undo.callback(self._parts.pool.readers.close)
        return {
            unit.layout.name: self._disk_unit(self._store, index, unit)
            for index, unit in enumerate(units)
        }

    def refuse_saving(self, hooks: Hooks) -> None:
        """`state_dict()` would hand out tensors without data: say where the data is instead."""
        modules = [unit.module for unit in self._units("disk")]
        hooks.refuse_state_dict(
            modules,
            "the weights of this transformer are not in memory but streamed from "
            f"{self._source}: copy that file instead of saving the model",
        )

    def reading_sentences(self) -> tuple[str, ...]:
        """How the files are read, where it is not the best way."""
        modes = set(self._store.modes) if self._store is not None else set()
        if "plain" in modes:
            return ("blocks are read by plain reads: this platform has no os.preadv",)
        if "buffered" in modes:
            return ("blocks are read through the page cache: this file system has no O_DIRECT",)
        return ()

    def _units(self, tier: str) -> list[LiveUnit]:
        plan = self._parts.plan
        return [u for u in self._parts.live.units if plan.tier_of(u.layout.name) == tier]

    def _hang(self, name: str, tensors: tuple[LiveTensor, ...] | list[LiveTensor]) -> None:
        hang_on_device(
            self._parts.undo, tensors, self._loader.read(name, tensors), self._parts.device
        )

    def _disk_unit(self, store: DiskStore, index: int, unit: LiveUnit) -> StreamedUnit:
        parts = self._parts
        stored = [self._model.stored_form(tensor) for tensor in unit.tensors]
        leaves = [
            replace(leaf, dtype=form.dtype, stride=contiguous_stride(form.shape))
            for leaf, form in zip(unit.layout.leaves, stored, strict=True)
            if form is not None
        ]
        views = unit_views(leaves, store.slab_offsets(index), parts.pool)
        numbers = decoded_leaves(self._model, unit).numbers
        values, decode = decoded_values(unit, views, numbers, parts.pool)
        source = DiskSource(store, index)
        transfer: Transfer
        if parts.device.on_host:
            transfer = DirectRead(parts.pool, source, parts.recorder)
        else:
            nbytes = store.slabs[index].slab.nbytes
            transfer = StagedCopy(parts.pool, source, nbytes, parts.recorder)
        binding = idle_binding(unit)
        return StreamedUnit(binding, transfer, tuple(map(binding.hanging, values)), decode)


class DiskSource:
    """One unit of a disk store as the engine's transfers see it."""

    def __init__(self, store: DiskStore, index: int) -> None:
        self._store = store
        self._index = index
        self.read_bytes = store.slabs[index].read_bytes

    def pieces(self, landing: Landing) -> list[Piece]:
        return self._store.pieces(self._index, landing)

    def settle(self, landing: Landing) -> int:
        return self._store.settle(self._index, landing)
