"""Model folders of the hub: which subfolder, which class and which weight files are meant.

A pipeline's folder has a model_index.json that names its parts; the folder of a part has a
config.json that names its class, and weights in one or several files, perhaps in variants.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ArgsError, CheckpointError
from ..paths import input_path
from .quoting import quote, some
from .shards import (
    CONFIG_NAME,
    DIFFUSERS_STEM,
    SUFFIX,
    FoundFiles,
    find_files,
    from_index,
    one_file,
    read_object,
    shards,
)

_INDEX_NAME = "model_index.json"
_STEMS = (DIFFUSERS_STEM, "model")
_LIBRARIES = ("diffusers", "transformers")
# Classes of Wan models, which are known better than by their config.
WAN_CLASSES = ("WanTransformer3DModel", "WanVACETransformer3DModel", "WanModel", "VaceWanModel")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder with a config.json: its class by name, in which package that is to be found."""

    path: Path
    package: str
    class_name: str
    config: Mapping[str, Any]


def model_folder(
    path: str | os.PathLike[str], component: str, subfolder: str | None = None
) -> ModelFolder | None:
    """The folder that `path` means; None where it is no folder whose config names a class.

    Of a pipeline's folder it is `subfolder`, or else the one of its `component`. Raises
    CheckpointError or ArgsError.
    """
    folder = _within(input_path(path), subfolder)
    index = folder / _INDEX_NAME
    if not (folder / CONFIG_NAME).is_file() and index.is_file():
        named = read_object(index).get(component)
        library, class_name = _named(index, component, named)
        folder = folder / component
        if not (folder / CONFIG_NAME).is_file():
            raise CheckpointError(
                f"{folder} has no {CONFIG_NAME}, and {index} says that it has one: download it"
            )
        return ModelFolder(folder, library, class_name, read_object(folder / CONFIG_NAME))
    if not (folder / CONFIG_NAME).is_file():
        return None
    config = read_object(folder / CONFIG_NAME)
    if isinstance(config.get("_class_name"), str):
        return ModelFolder(folder, "diffusers", config["_class_name"], config)
    classes = config.get("architectures")
    if isinstance(classes, list) and classes and isinstance(classes[0], str):
        return ModelFolder(folder, "transformers", classes[0], config)
    return None


def weight_files(folder: Path, variant: str | None) -> FoundFiles:
    """The files of a model folder, of one variant or of none. Raises CheckpointError, ArgsError."""
    if variant is not None and not re.fullmatch(r"\w+", variant):
        raise ArgsError(f"variant={variant!r} was asked: give a word, such as 'fp16'")
    mark = f".{variant}" if variant else ""
    names = sorted(entry.name for entry in folder.iterdir())
    for stem in _STEMS:
        if (index := f"{stem}{SUFFIX}.index{mark}.json") in names:
            return from_index(folder / index, folder.name)
        if (single := f"{stem}{mark}{SUFFIX}") in names:
            return replace(one_file(folder / single), label=folder.name)
        of_set = re.compile(re.escape(stem + mark) + r"-\d{5}-of-\d{5}\.safetensors")
        if several := [name for name in names if of_set.fullmatch(name)]:
            return shards(folder, several)
    _refuse_variant(folder, names, variant)
    return find_files(folder)


def _refuse_variant(folder: Path, names: list[str], variant: str | None) -> None:
    """Says which variants there are, or that there are only pickles."""
    found = {
        match[1]
        for name in names
        for stem in _STEMS
        if (match := re.match(re.escape(stem) + r"(?:\.safetensors\.index)?\.(\w+)[-.]", name))
        and match[1] not in ("safetensors", "index")
    }
    asked = f"variant={variant!r} was asked of {folder}" if variant else f"{folder} was opened"
    if found:
        raise ArgsError(
            f"{asked}, and its weights are of the variants {some(sorted(found))}: give variant="
        )
    if variant:
        raise ArgsError(f"{asked}, which has weights of no variant: leave the variant out")
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles and not any(name.endswith(SUFFIX) for name in names):
        raise CheckpointError(
            f"{asked}, and its weights are pickles ({some(pickles)}), which run code when they are "
            "read: load them once with the library and save_pretrained(safe_serialization=True)"
        )


def _within(path: Path, subfolder: str | None) -> Path:
    if subfolder is None:
        return path
    parts = Path(subfolder).parts
    if not parts or ".." in parts or Path(subfolder).is_absolute():
        raise ArgsError(
            f"subfolder={subfolder!r} was asked: give the name of a folder inside {path}"
        )
    folder = path.joinpath(*parts)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not there: check subfolder={subfolder!r}")
    return folder


def _named(index: Path, component: str, named: Any) -> tuple[str, str]:
    """Library and class that a pipeline's index names for one of its parts."""
    whole = isinstance(named, list) and len(named) == 2 and all(isinstance(n, str) for n in named)
    if not whole:
        raise CheckpointError(
            f"{index} names no {component}: give the folder of the part that is meant, or "
            "subfolder="
        )
    if named[0] not in _LIBRARIES:
        raise CheckpointError(
            f"{index} says that its {component} is {quote(named[1])} of {quote(named[0])}, code "
            "that comes with the model and is never run here: load it yourself and use swap_blocks"
        )
    return named[0], named[1]
