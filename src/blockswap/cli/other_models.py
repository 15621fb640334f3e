"""Owns what is told of a model of diffusers or transformers: its class, its blocks, its plan."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import ArgsError, ModelError
from ..layout.checkpoint import open_checkpoint
from ..layout.geometry.families import library_class_of
from ..layout.model_folder import WAN_CLASSES, ModelFolder, model_folder
from ..layout.summary import bytes_by_dtype
from ..paths import input_path, is_there
from ..plan.inputs.machine import Machine
from ..published import family_of, with_parts_of
from ..report.words import count_of, is_block, name_runs
from ..selection import BlockSwapArgs
from ..units import format_bytes
from .console import new_console, print_facts
from .inspection import REST, Part, part_of
from .part_table import print_parts

if TYPE_CHECKING:
    from ..forecast import ModelFigures
    from ..plan import SwapPlan
    from ..swap.opening.found_model import FoundModel

TABLES = "tables read by rows"
UNKNOWN = "it is not known what a pipeline gives this model: only its weights are planned"
LEAVE_ROOM = "leave room with --vram for what a forward adds, which is not forecast"


def library_folder(
    path: Path | str, config: Path | None, modules: Sequence[Path] = ()
) -> ModelFolder | None:
    """The folder that names a model's class, where it is another than Wan's; None for Wan's.

    Of a pipeline's folder it is the transformer. A file of a model built on Wan shows its class
    itself. `modules` go onto Wan's alone. Raises CheckpointError or ArgsError.
    """
    found = _library_folder(path, config)
    if found is not None and modules:
        raise ArgsError(
            f"--module {modules[0]} was given for a {found.class_name}, and modules go onto Wan's "
            "own models: leave it out"
        )
    return found


def _library_folder(path: Path | str, config: Path | None) -> ModelFolder | None:
    if config is not None:
        from ..swap.entry.host_library import Source

        return Source(path, config=config).config_folder("transformer")
    if not is_there(path):
        return None
    if not input_path(path).is_dir():
        relative = library_class_of(open_checkpoint(path).tensors)
        return None if relative is None else ModelFolder(Path(path), "diffusers", relative, {})
    folder = model_folder(path, "transformer")
    return None if folder is None or folder.class_name in WAN_CLASSES else folder


def print_library_model(
    path: Path, folder: ModelFolder, config: Path | None, *, as_json: bool
) -> None:
    """What `blockswap inspect` says of it; only headers are read."""
    from ..swap.entry.other_model import find_library_model

    found = find_library_model(path, folder, config=config)
    units, beside = _units(found), _beside(found)
    if as_json:
        told = {
            **_head(found, folder),
            "units": [asdict(unit) for unit in units],
            "beside": [asdict(part) for part in beside],
        }
        typer.echo(json.dumps(told, indent=2))
        return
    console = new_console()
    print_facts(console, str(path), _facts(found, folder))
    print_parts(console, units, beside)
    if blocks := [unit for unit in units if is_block(unit.name)]:
        console.print(
            f"Each streamed block keeps up to {format_bytes(max(b.nbytes for b in blocks))} off "
            f"the device; all {len(blocks)} blocks are "
            f"{format_bytes(sum(b.nbytes for b in blocks))}.",
            soft_wrap=True,
        )


def figures_of_folder(
    path: str, folder: ModelFolder, config: Path | None, args: BlockSwapArgs, dtype: str | None,
    notes: list[str],
) -> "tuple[ModelFigures | None, str]":  # fmt: skip
    """The model as a forecast takes it, or None and why there is none; only headers are read.

    `notes` gets what is assumed beside it.
    """
    from ..forecast import ModelFigures
    from ..predict.subject import PublishedSubject
    from ..swap.entry.other_model import find_library_model

    family = family_of(folder.class_name) if folder.package == "diffusers" else None
    if family is None:
        return None, UNKNOWN
    found = find_library_model(path, folder, args, config=config, dtype=dtype)
    facts, sizes = found.basis.facts, bytes_by_dtype(found.checkpoint.tensors.values())
    family, said = with_parts_of(family, folder.path.parent)
    stated = {name: one for name, one in folder.config.items() if not name.startswith("_")}
    subject = PublishedSubject(family, stated)
    try:
        subject.forward(subject.least_clip())
    except ModelError as error:
        return None, f"{error}; only its weights are planned"
    notes.extend((*found.assumed, *facts.notes, *said))
    figures = ModelFigures(
        label=found.checkpoint.label,
        subject=subject,
        layout=found.model.live.layout,
        dtype=_computed(found),
        units=facts.units,
        rest_bytes=facts.rest_bytes,
        loaded_units=tuple(unit.loaded() for unit in facts.units),
        path=Path(path),
        stored=next(iter(sizes)),
    )
    return figures, ""


def _computed(found: "FoundModel") -> str:
    """The dtype that most bytes of the blocks compute in."""
    sizes: Counter[str] = Counter()
    for unit in found.model.live.layout.units:
        for leaf in unit.leaves:
            sizes[leaf.dtype] += leaf.nbytes
    return sizes.most_common(1)[0][0]


def tell_library_plan(  # noqa: PLR0913, PLR0917 - what a command line holds
    path: str, folder: ModelFolder, config: Path | None, args: BlockSwapArgs, dtype: str | None,
    elsewhere: tuple[Machine, Mapping[str, int | None]] | None, unknown: str, *, as_json: bool,
) -> None:  # fmt: skip
    """What `blockswap plan` says of it: what streams, the bytes of weights and slots, and why.

    `elsewhere`: a machine that is not at hand, with its free memory; `unknown`: why no forward is
    forecast.
    """
    from ..swap.entry.other_model import Elsewhere, find_library_model, plan_library_model

    found = find_library_model(path, folder, args, config=config, dtype=dtype)
    where = None if elsewhere is None else Elsewhere(elsewhere[0], **elsewhere[1])
    plan = plan_library_model(found, where)
    if as_json:
        planned = asdict(plan) | {"block_map": plan.block_map()}
        told = {**_head(found, folder), "plan": planned, "notes": [unknown, LEAVE_ROOM]}
        typer.echo(json.dumps(told, indent=2))
    else:
        _print_plan(found, folder, plan, (unknown, LEAVE_ROOM))


def _print_plan(
    found: "FoundModel", folder: ModelFolder, plan: "SwapPlan", notes: tuple[str, ...]
) -> None:
    console = new_console()
    pinned = plan.pinned_bytes + plan.staging_buffers * plan.staging_bytes
    streamed = f"{len(plan.streamed)} of {len(plan.units)}"
    slots = f"{plan.slots} of {format_bytes(plan.slot_bytes)}" if plan.slots else "none"
    facts = (
        *_facts(found, folder),
        ("device", plan.device),
        ("plan", f"{plan.map_words()}   R stays, m from RAM, d from disk"),
        ("streamed", ": ".join(part for part in (streamed, name_runs(plan.streamed)) if part)),
        ("slots", slots),
        ("on the device", f"{format_bytes(plan.device_bytes)} of weights and slots"),
        ("pinned", format_bytes(pinned)),
    )
    print_facts(console, found.checkpoint.label, facts)
    for sentence in (*plan.sentences, *notes):
        console.print(f"- {sentence}", soft_wrap=True)


def _facts(found: "FoundModel", folder: ModelFolder) -> tuple[tuple[str, str], ...]:
    checkpoint = found.checkpoint
    tensors = checkpoint.tensors.values()
    values = sum(math.prod(tensor.shape) for tensor in tensors) / 1e9
    files = count_of(len(checkpoint.headers), "file")
    dtypes = bytes_by_dtype(tensors).items()
    facts = [
        ("model", f"{_class_name(found)} of {folder.package}"),
        ("size", f"{format_bytes(checkpoint.nbytes)} in {files}, {values:.3g} B parameters"),
        ("dtypes", ", ".join(f"{dtype} {format_bytes(nbytes)}" for dtype, nbytes in dtypes)),
        ("blocks", ", ".join(f"{n} in {name}" for name, n in _lists(found).items()) or "none"),
    ]
    facts.extend(("note", note) for note in found.assumed)
    return tuple(facts)


def _head(found: "FoundModel", folder: ModelFolder) -> dict[str, Any]:
    checkpoint = found.checkpoint
    return {
        "label": checkpoint.label,
        "class": _class_name(found),
        "library": folder.package,
        "lists": _lists(found),
        "bytes": checkpoint.nbytes,
        "dtype_bytes": bytes_by_dtype(checkpoint.tensors.values()),
        "files": [{"path": str(h.path), "bytes": h.file_bytes} for h in checkpoint.headers],
    }


def _class_name(found: "FoundModel") -> str:
    """The class that is opened: of an encoder and decoder, its encoder's."""
    return type(found.model.live.root).__name__


def _lists(found: "FoundModel") -> dict[str, int]:
    """How many blocks are in which list, in the order of a forward."""
    names = [unit.layout.name for unit in found.model.live.units]
    return dict(Counter(name.rpartition(".")[0] for name in names if is_block(name)))


def _units(found: "FoundModel") -> tuple[Part, ...]:
    model = found.model
    return tuple(part_of(unit.layout.name, model.parts(unit.tensors)) for unit in model.live.units)


def _beside(found: "FoundModel") -> tuple[Part, ...]:
    """What stays on the device, and what is read by rows; nothing where nothing is stored."""
    model = found.model
    kinds = ((REST, model.parts(model.live.rest)), (TABLES, model.parts(model.live.tables)))
    return tuple(part_of(name, tensors) for name, tensors in kinds if tensors)
