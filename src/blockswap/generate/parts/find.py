"""Which files and folders make up the pipeline that is asked for; what is assumed beside them."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from ...errors import ArgsError, BlockSwapError, CheckpointError
from ...paths import input_path
from .components import VAE, Components, Part, reads_image, refuse_mismatch
from .files import (
    MODULE,
    PICKLES,
    checkpoints_in,
    part_of_file,
    refusal_of_pickles,
    role_of_file,
    tokenizer_in,
)
from .folders import part_of_folder, read_config
from .load import class_named
from .modules import HIGH, LOW, with_modules

_DEPTH = 3  # folders below the one that is given: repackaged files lie two below
_BOUNDARY = {False: 0.875, True: 0.9}  # Wan 2.2's experts of text, of an image
_SMALL = 1.2 * 832 * 480  # pixels up to which Wan 2.1 samples with the smaller shift
_SHIFTS = ("flow_shift", "shift")  # what schedulers of diffusers call it
_HELD = "a transformer, a text encoder with its tokenizer, and a VAE"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What was given as the model: folders and files, and what they do not tell themselves.

    `high_noise` and `low_noise` are the two experts of Wan 2.2, `tokenizer` the text encoder's
    folder, `shift` the scheduler's flow shift, `modules` files that go onto the transformers.
    """

    paths: tuple[Path, ...]
    high_noise: Path | None = None
    low_noise: Path | None = None
    tokenizer: Path | None = None
    shift: float | None = None
    modules: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Raises ArgsError."""
        if self.shift is not None and not (math.isfinite(self.shift) and self.shift > 0):
            raise ArgsError(
                f"shift={self.shift} was asked: give a number above 0, as 3, or leave it out"
            )

    @property
    def label(self) -> str:
        return ", ".join(map(str, self.paths))


Found = dict[str, list[Part]]


def find_components(
    model: str | os.PathLike[str] | ModelFiles, *, pixels: int = 832 * 480
) -> Components:
    """The parts, whatever their files are called. `pixels` of a frame: what a scheduler assumes.

    Raises CheckpointError where one is missing, there more than once, or another model's.
    """
    given = model if isinstance(model, ModelFiles) else ModelFiles((Path(model),))
    found, strangers = _gather(given)
    transformers = with_modules(_transformers(given, found, strangers), given.modules)
    found = _fitting(found, transformers[0])
    folder = input_path(given.paths[0]) if given.paths else transformers[0].path
    index = _index(folder)
    encoder = _one(given, found, "text encoder", strangers)
    parts = Components(
        folder=folder,
        transformers=transformers,
        text_encoder=encoder,
        tokenizer=_tokenizer(given, found, encoder),
        vae=_one(given, found, "VAE", strangers),
        scheduler=encoder,
        image_encoder=found.get("image encoder", [None])[0],
        image_processor=found.get("image processor", [None])[0],
        boundary_ratio=index.get("boundary_ratio"),
        expand_timesteps=bool(index.get("expand_timesteps", False)),
    )
    parts = replace(parts, notes=tuple(_instead(given, found)))
    parts = _with_assumed(parts, given, found, index, pixels)
    refuse_mismatch(parts)
    return parts


def _gather(given: ModelFiles) -> tuple[Found, list[str]]:
    """Every part in what was given, by role; what lies in folders and is none, in sentences.

    A file that was given by its own name must be a part.
    """
    found: Found = {}
    strangers: list[str] = []
    for path in dict.fromkeys(map(input_path, given.paths)):
        if path.is_file():
            role, part = part_of_file(path)
            found.setdefault(role, []).append(part)
        elif path.is_dir():
            for role, part in _below(path, 0, strangers):
                found.setdefault(role, []).append(part)
        else:
            raise CheckpointError(
                f"{path} was given as the model, and it is not there: give a folder or files "
                f"with {_HELD}"
            )
    return found, strangers


def _below(folder: Path, depth: int, strangers: list[str]) -> Iterator[tuple[str, Part]]:
    """Parts in a folder and in those inside it; a folder that is a part is looked at no further."""
    own = part_of_folder(folder) if depth or not (folder / "model_index.json").exists() else None
    if own is not None:
        yield own
        return
    for path, members in checkpoints_in(folder):
        try:
            if role_of_file(path) not in ("LoRA", MODULE, ""):
                yield part_of_file(path, members)
        except BlockSwapError as error:  # another model's: it matters where Wan's is missing
            strangers.append(str(error))
    inside = sorted(folder.iterdir())
    pickles = [path for path in inside if path.suffix in PICKLES and path.is_file()]
    if pickles:
        strangers.append(refusal_of_pickles(pickles))
    for path in inside:
        if path.is_dir() and depth < _DEPTH and not path.name.startswith("."):
            yield from _below(path, depth + 1, strangers)


def _fitting(found: Found, transformer: Part) -> Found:
    """Of several of a kind those that the transformer computes with, as folders of models hold."""
    latents = int(transformer.config.get("out_channels") or 16)
    fits: dict[str, Callable[[Part], bool]] = {
        "VAE": lambda part: int(part.config.get("z_dim", 16)) == latents,
        "text encoder": lambda part: part.class_name.startswith("UMT5"),
    }
    chosen = {role: [p for p in found.get(role, []) if fit(p)] for role, fit in fits.items()}
    return {**found, **{role: parts for role, parts in chosen.items() if parts}}


def _transformers(given: ModelFiles, found: Found, strangers: Sequence[str]) -> tuple[Part, ...]:
    """One, or the expert of high noise and that of low noise."""
    told = (given.high_noise, given.low_noise)
    if (told[0] is None) != (told[1] is None):
        raise CheckpointError(
            "one expert was named and the other was not: give both, --high-noise and --low-noise"
        )
    if told[0] is not None and told[1] is not None:
        return tuple(_expert(input_path(path)) for path in (told[0], told[1]))
    parts = found.get("transformer", [])
    if len(parts) < 2:
        return (_one(given, found, "transformer", strangers),)
    if all(part.source == "library" for part in parts) and len(parts) == 2:
        return tuple(sorted(parts, key=lambda part: part.path.name))
    high, low = ([p for p in parts if sign.search(_told_by(p))] for sign in (HIGH, LOW))
    if len(parts) == 2 and len(high) == len(low) == 1 and high != low:
        return (*high, *low)
    names = ", ".join(str(part.path) for part in parts)
    raise CheckpointError(
        f"{given.label} holds {len(parts)} transformers ({names}), and their names do not say "
        "which is the expert of high noise and which of low: give --high-noise FILE and "
        "--low-noise FILE, or the one file that is meant"
    )


def _told_by(part: Part) -> str:
    """A file's name, and for shards the folder's, too."""
    file = part.members[0] if part.members else part.path
    several = len(part.members) > 1 or file.name.startswith("diffusion_pytorch_model")
    return f"{file.parent.name}/{file.name}" if several else file.name


def _expert(path: Path) -> Part:
    if path.is_dir():
        found = [part for role, part in _below(path, _DEPTH, []) if role == "transformer"]
    else:
        found = [part for role, part in [part_of_file(path)] if role == "transformer"]
    if len(found) != 1:
        raise CheckpointError(
            f"{path} was given as an expert, and it is no transformer of Wan: give a file of one, "
            "or a folder that holds it alone"
        )
    return found[0]


def _one(given: ModelFiles, found: Found, role: str, strangers: Sequence[str]) -> Part:
    parts = found.get(role, [])
    if len(parts) > 1:
        names = ", ".join(str(part.path) for part in parts)
        raise CheckpointError(
            f"{given.label} holds more than one {role} ({names}): give the files that are meant, "
            "each by --model FILE"
        )
    if parts:
        return parts[0]
    beside = "".join(f"; {sentence}" for sentence in strangers[:3])
    raise CheckpointError(f"{given.label} holds no {role}{beside or f': {_HELD} are needed'}")


def _tokenizer(given: ModelFiles, found: Found, encoder: Part) -> Part:
    if given.tokenizer is not None:
        told = input_path(given.tokenizer)
        part = part_of_folder(told) if told.is_dir() else None
        if part is None or part[0] != "tokenizer":
            raise CheckpointError(
                f"{told} was given as the tokenizer, and it is no folder with a tokenizer.json: "
                "give google/umt5-xxl's folder, or that of a diffusers model"
            )
        return part[1]
    carried = tokenizer_in(encoder)
    if "tokenizer" not in found and carried is not None:
        return carried
    if "tokenizer" not in found:
        raise CheckpointError(
            f"{given.label} holds no tokenizer, and the text encoder {encoder.path.name} carries "
            "none with it: give --tokenizer FOLDER (google/umt5-xxl of the vendor's download, or "
            "tokenizer of a diffusers folder), or ComfyUI's repackaged encoder"
        )
    return _one(given, found, "tokenizer", ())


def _with_assumed(
    parts: Components, given: ModelFiles, found: Found, index: Any, pixels: int
) -> Components:
    """What single files do not say: scheduler, image processor, boundary and kind of timesteps."""
    small = parts.vae.class_name == VAE and int(parts.vae.config.get("z_dim", 16)) == 48
    if index:
        _one(given, found, "scheduler", ())
    parts = _with_scheduler(parts, given, found, small or pixels > _SMALL)
    if not index:
        parts = replace(parts, expand_timesteps=small)
    if len(parts.transformers) == 2 and parts.boundary_ratio is None:
        if parts.transformers[0].source == "library":
            raise CheckpointError(
                f"{given.label} holds two transformers, and its model_index.json does not say at "
                "which noise the second takes over (boundary_ratio): add it, 0.875 for T2V and "
                "0.9 for I2V"
            )
        ratio = _BOUNDARY[reads_image(parts.transformers[0])]
        note = f"no file says at which noise the second expert takes over: {ratio}, as Wan 2.2's"
        parts = replace(parts, boundary_ratio=ratio, notes=(*parts.notes, note))
    if parts.image_encoder is not None and parts.image_processor is None:
        processor = Part(parts.folder, "CLIPImageProcessor", {}, "config")
        parts = replace(parts, image_processor=processor)
    return parts


def _with_scheduler(parts: Components, given: ModelFiles, found: Found, large: bool) -> Components:
    if "scheduler" in found:
        scheduler = _one(given, found, "scheduler", ())
        if given.shift is not None:
            scheduler = _shifted(scheduler, given.shift)
        return replace(parts, scheduler=scheduler)
    shift = given.shift or (5.0 if large else 3.0)
    config = {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": shift,
        "solver_order": 2,
        "num_train_timesteps": 1000,
    }
    scheduler = Part(parts.folder, "UniPCMultistepScheduler", config, "config")
    note = f"no file names a scheduler: UniPC with a flow shift of {shift:g} (--shift changes it)"
    return replace(parts, scheduler=scheduler, notes=(*parts.notes, note))


def _shifted(scheduler: Part, shift: float) -> Part:
    """The scheduler with that flow shift. Raises ArgsError where it has none."""
    known = signature(class_named(scheduler.class_name).__init__).parameters
    config = dict(scheduler.config)
    name = next((name for name in _SHIFTS if name in known), None)
    flows = name == "shift" or bool(name and config.get("use_flow_sigmas"))
    if name is None or not flows or config.get("use_dynamic_shifting"):
        why = "shifts by the size of the clip" if flows else "has no flow shift"
        raise ArgsError(
            f"shift={shift:g} was asked, and the {scheduler.class_name} in {scheduler.path} {why}: "
            "leave it out"
        )
    return Part(scheduler.path, scheduler.class_name, {**config, name: shift}, "config")


def _instead(given: ModelFiles, found: Found) -> Iterator[str]:
    """What was named by an option and is used in the place of what lies in the model."""
    own = {role: found.get(role, []) for role in ("tokenizer", "transformer")}
    if given.tokenizer is not None and own["tokenizer"]:
        path = own["tokenizer"][0].path
        if path != input_path(given.tokenizer):
            yield f"the tokenizer in {given.tokenizer} is used, and not that in {path}"
    if given.high_noise is not None:
        named = {input_path(path) for path in (given.high_noise, given.low_noise) if path}
        others = [str(part.path) for part in own["transformer"] if part.path not in named]
        if others:
            yield f"the two experts that were named are used, and not {', '.join(others)}"


def _index(folder: Path) -> Any:
    path = folder / "model_index.json"
    return read_config(path) if path.exists() else {}
