"""What is said of a wrapper model before its sampler runs: which of its blocks are streamed.

The pack loads weights when its sampler starts, in dtypes of its own, and only then is it known what
stays. The units are those of the model that its loader has built, or are read off the names in the
file; with a file what stays is foretold for weights as that loader would cast them.
"""

import re

from ...adapters.families import VACE_LIST, unit_modules
from ...errors import ModelError, PlanError
from ...layout.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from ...layout.slab import LEAF_ALIGNMENT, align_up
from ...layout.values import ModelLayout, UnitKind, UnitLayout
from ...plan import Facts, UnitFacts, make_plan
from ...report.words import name_runs
from ...selection import BlockSwapArgs, select
from ..runs.status import plan_sentence
from ..seams import host
from .names import OUTSIDE, missing_in, registered_pack

LOADER = "WanVideoModelLoader"
SAID = "this is a model of WanVideoWrapper: its blocks are streamed here, its own swap is off"
_ROUNDED = 512  # bytes, as allocators of accelerators do
# How wide its loader makes plain weights, by its base_precision, and those that it keeps wide.
_WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2, "fp16_fast": 2}
_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_IN_FP32, _AS_STORED = ("patch_embedding",), ("modulation", "norm")
_BLOCK = re.compile(rf"((?:{VACE_LIST}|blocks)\.(\d+))\.")
_EMBEDDERS: dict[str, UnitKind] = {"text_embedding": "text_embedder", "img_emb": "image_embedder"}


def layout_of(transformer: object) -> ModelLayout:
    """The units of a model of the pack; their weights come when it loads them, at each run anew."""
    units = unit_modules(transformer)  # type: ignore[arg-type]
    bare = tuple(UnitLayout(unit.name, unit.kind, unit.index, ()) for unit in units)
    return ModelLayout(label=type(transformer).__name__, units=bare, rest=())


def layout_in(checkpoint: Checkpoint) -> ModelLayout:
    """The same for the model in a file, from its header."""
    units: dict[str, UnitLayout] = {}
    for key in checkpoint.tensors:
        block, first = _BLOCK.match(key), key.partition(".")[0]
        if block is not None:
            kind: UnitKind = "vace" if key.startswith(VACE_LIST) else "block"
            units[block[1]] = UnitLayout(block[1], kind, int(block[2]), ())
        elif first in _EMBEDDERS:
            units[first] = UnitLayout(first, _EMBEDDERS[first], 0, ())
    # As a built model has them: VACE blocks before the others.
    in_order = sorted(
        units.values(), key=lambda unit: (unit.kind == "block", unit.list_name, unit.index)
    )
    return ModelLayout(label=checkpoint.label, units=tuple(in_order), rest=())


def said_of(args: BlockSwapArgs, layout: ModelLayout) -> str:
    """Which blocks are streamed, or which may be. Raises SelectionError beyond the model."""
    selection = select(args, layout)
    number = len(selection.candidates)
    which = f"{number} of {len(layout.units)} units"
    if selection.candidates:
        which += f" ({name_runs(sorted(selection.candidates, key=_place))})"
    if selection.exact:
        return f"{SAID}; plan: {which} {'is' if number == 1 else 'are'} streamed"
    return (
        f"{SAID}; plan: {which} may be streamed, and how many of them stay is known and told when "
        "its sampler starts, which loads the weights"
    )


def _place(name: str) -> tuple[str, int]:
    head, _, last = name.rpartition(".")
    return (head, int(last)) if last.isdecimal() else (name, 0)


def plan_for_wrapper(
    path: str, args: BlockSwapArgs, precision: str, *, joined: bool, managed: bool
) -> str:
    """What the swap node will say behind the pack's loader of a file.

    `precision`: the base_precision of the loader. `joined`: it joins another module to the model;
    `managed`: it has vram_management_args.
    """
    if managed:
        raise ModelError(MANAGED)
    loader = host.registered(LOADER)
    if loader is None:
        raise ModelError(f"the pack of the node {LOADER} is not installed: install WanVideoWrapper")
    lacking = missing_in(registered_pack(loader))
    if lacking is not None:
        raise ModelError(
            f"this version of WanVideoWrapper has no {lacking}, which we would stream its blocks "
            "through: what it does by itself is told when the node runs"
        )
    if joined:
        raise ModelError(
            f"{LOADER} joins another module to its file, and how many blocks that brings is known "
            "when it has run: the plan is told on the node then"
        )
    checkpoint = open_checkpoint(path)
    layout = layout_in(checkpoint)
    return said_of(args, layout) + _foretold(args, checkpoint, layout, precision)


def _foretold(
    args: BlockSwapArgs, checkpoint: Checkpoint, layout: ModelLayout, precision: str
) -> str:
    """What would stay of weights as they are loaded, beside what is free now."""
    device = host.compute_device()
    if device.type == "cpu" or not layout.units:
        return ""
    alone = dict.fromkeys((unit.name for unit in layout.units), 0)
    slabs = dict(alone)
    for key, tensor in checkpoint.tensors.items():
        name, nbytes = _unit_of(key), _loaded_bytes(key, tensor, precision)
        alone[name] = alone.get(name, 0) + align_up(nbytes, _ROUNDED)
        slabs[name] = slabs.get(name, 0) + align_up(nbytes, LEAF_ALIGNMENT)
    units = tuple(UnitFacts(u.name, u.kind, alone.pop(u.name), slabs[u.name]) for u in layout.units)
    free = max(host.free_bytes(device) - host.inference_bytes(), 0)
    facts = Facts(
        label=layout.label,
        device=str(device),
        on_host=False,
        units=units,
        rest_bytes=sum(alone.values()),
        device_free_bytes=None,
        host_free_bytes=None,
        granularity=_ROUNDED,
        from_checkpoint=False,
        granted_bytes=free,
    )
    try:
        said = plan_sentence(make_plan(facts, select(args, layout), args), free)
    except PlanError as error:
        said = str(error)
    stored = f"in {precision}" if precision in _WIDTHS else "as the file stores them"
    return f"; foretold for weights {stored}, not quantised by the loader, without LoRAs: {said}"


def _loaded_bytes(key: str, tensor: StoredTensor, precision: str) -> int:
    """A weight's bytes as the pack's loader casts it; packed and 8-bit ones stay as they are."""
    width, stored = _WIDTHS.get(precision), _WIDTHS.get(_SHORT.get(tensor.dtype, ""))
    if width is None or stored is None:
        return tensor.nbytes
    wide = _IN_FP32 if stored < 4 else (*_IN_FP32, *_AS_STORED)
    if any(word in key for word in wide):
        width = 4
    return tensor.nbytes // stored * width


def _unit_of(key: str) -> str:
    """The unit that a weight moves with; parts that run outside of their block stay."""
    block = _BLOCK.match(key)
    if block is None:
        return key.partition(".")[0]
    part = key[block.end() :].partition(".")[0]
    return f"{block[1]}.{part}" if part in OUTSIDE else block[1]


MANAGED = (
    "this model was loaded with vram_management_args, by which WanVideoWrapper moves each layer "
    "itself: take those off its loader, or WanVideo Block Swap off the model"
)
