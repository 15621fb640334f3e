"""A model of diffusers or transformers found in its folder or file; what is assumed of it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...adapters.hosts import diffusers_models, transformers_seam, wan_relatives
from ...adapters.hosts.encoder_files import encoder_dtype, in_library_names, t5_config
from ...adapters.hosts.stored_rows import rows_by_name, stored_by_rows
from ...adapters.stored import StoredModel
from ...errors import ArgsError, CheckpointError
from ...layout.checkpoint import Checkpoint, whole_checkpoint
from ...layout.formats import unpacked
from ...layout.formats.main_dtype import main_dtype
from ...layout.geometry.families import library_class_of
from ...layout.model_folder import WAN_CLASSES, ModelFolder, model_folder, weight_files
from ...layout.quoting import quote
from ...layout.shards import find_files
from ...paths import input_path
from ...selection import BlockSwapArgs, select
from ...store.leaves import torch_dtype
from ...stream.device import Device
from ..opening.found_model import FoundModel
from ..plan_inputs.basis import Basis
from ..plan_inputs.model_bytes import facts_of_checkpoint
from ..plan_inputs.outlook import AnyWorkload, foresee


@dataclass(frozen=True, slots=True)
class Source:
    """What a caller named: a path, and which part, variant or config of it is meant.

    Raises ArgsError for a part or variant of what is no folder, or beside a config.
    """

    path: str | os.PathLike[str]
    subfolder: str | None = None
    variant: str | None = None
    config: str | os.PathLike[str] | None = None
    modules: tuple[str | os.PathLike[str], ...] = ()  # files that go onto the one at `path`

    def __post_init__(self) -> None:
        for name, said in (("subfolder", self.subfolder), ("variant", self.variant)):
            if said is not None and self.config is not None:
                raise ArgsError(
                    f"{name}={said!r} was given beside config=, which is for a single file: leave "
                    "one of them out"
                )
            if said is not None and _is_plain(self.path):
                raise ArgsError(
                    f"{name}={said!r} was given for {quote(self.path)}, which is no folder: give "
                    f"the folder, or leave {name} out"
                )

    def folder(self, component: str) -> ModelFolder | None:
        """The model folder, or None for a file or a folder that names no class."""
        return model_folder(self.path, component, self.subfolder)

    def place(self, component: str) -> str | os.PathLike[str]:
        """The file or folder that holds the weights."""
        folder = None if self.subfolder is None and _is_plain(self.path) else self.folder(component)
        return self.path if folder is None else folder.path

    def config_folder(self, component: str) -> ModelFolder:
        """The folder that `config` names. Raises CheckpointError."""
        assert self.config is not None
        path = input_path(self.config)
        found = model_folder(path.parent if path.is_file() else path, component)
        if found is None:
            raise CheckpointError(
                f"config={str(self.config)!r} was given, and there is no config.json that names a "
                "class: give the folder of one"
            )
        return found


AnyPath = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def source_of(
    path: AnyPath,
    subfolder: str | None = None,
    variant: str | None = None,
    config: str | os.PathLike[str] | None = None,
) -> Source:
    """What a caller named by a path, or by those of a model and of modules that go onto it."""
    if isinstance(path, (str, os.PathLike)) or not isinstance(path, Sequence) or not path:
        return Source(path, subfolder, variant, config)  # type: ignore[arg-type]
    first, *modules = path
    if config is not None and modules:
        raise ArgsError(
            f"{len(path)} files were given together with config=, and modules go onto Wan's own "
            "models: give one file, or leave config= out"
        )
    return Source(first, subfolder, variant, config, tuple(modules))


def relative_of_library(
    checkpoint: Checkpoint, dtype: torch.dtype | None, block_lists: Sequence[str]
) -> StoredModel | None:
    """A file of a model built on Wan, as diffusers' class for it; None for any other."""
    class_name = library_class_of(checkpoint.tensors)
    if class_name is None:
        return None
    built = wan_relatives.build_relative(checkpoint, class_name, _dtype(checkpoint, dtype))
    return stored_by_rows(built, checkpoint.label, block_lists)


def transformer_of_library(
    source: Source, dtype: torch.dtype | None, block_lists: Sequence[str]
) -> tuple[Checkpoint, StoredModel] | None:
    """A transformer of diffusers from a folder, or from a file with a config; None for Wan's."""
    if source.config is not None:
        named = source.config_folder("transformer")
        checkpoint = unpacked(whole_checkpoint(find_files(input_path(source.path))))
        rows, chosen = rows_by_name(checkpoint), _dtype(checkpoint, dtype)
        found = diffusers_models.model_class(named.class_name)
        built = diffusers_models.build_from_single_file(
            found, named.path, rows, chosen, checkpoint.label
        )
        return checkpoint, stored_by_rows(built, checkpoint.label, block_lists)
    if source.subfolder is None and _is_plain(source.path):
        return None
    folder = source.folder("transformer")
    if folder is None or folder.class_name in WAN_CLASSES:
        return None
    if source.modules:
        raise ArgsError(
            f"{quote(source.modules[0])} was given as a module over {folder.path}, which holds a "
            f"{folder.class_name}: modules go onto Wan's own models, give the one it was made for"
        )
    if folder.package != "diffusers":
        raise ArgsError(
            f"{folder.path} holds a {folder.class_name} of {folder.package}: open it with "
            "open_text_encoder"
        )
    found = diffusers_models.model_class(folder.class_name)
    checkpoint = unpacked(whole_checkpoint(weight_files(folder.path, source.variant)))
    built = diffusers_models.build_from_rows(
        found, folder.config, rows_by_name(checkpoint), _dtype(checkpoint, dtype), checkpoint.label
    )
    return checkpoint, stored_by_rows(built, checkpoint.label, block_lists)


def encoder_of_library(
    source: Source, dtype: torch.dtype | None, block_lists: Sequence[str]
) -> tuple[Checkpoint, StoredModel]:
    """A text encoder of transformers from its folder, or from a file. Raises BlockSwapError."""
    folder = source.folder("text_encoder")
    if folder is None and source.config is not None:
        folder = source.config_folder("text_encoder")
        files = find_files(input_path(source.path))
    elif folder is None:
        place = _file(source)
        variant = source.variant
        files = find_files(place) if variant is None else weight_files(place, variant)
    else:
        files = weight_files(folder.path, source.variant)
    if folder is not None and folder.package != "transformers":
        raise ArgsError(
            f"{folder.path} holds a {folder.class_name} of {folder.package}: open it with "
            "open_transformer"
        )
    checkpoint = unpacked(whole_checkpoint(files))
    rows = in_library_names(rows_by_name(checkpoint))
    if folder is None:
        class_name, values = t5_config(checkpoint.label, rows)
    else:
        class_name, values = folder.class_name, dict(folder.config)
    config = transformers_seam.config_of(values)
    found = transformers_seam.encoder_class(class_name, config)
    chosen = dtype or torch_dtype(encoder_dtype(checkpoint))
    built = transformers_seam.build_from_rows(found, config, rows, chosen, checkpoint.label)
    return checkpoint, stored_by_rows(built, checkpoint.label, block_lists)


def found_in(
    checkpoint: Checkpoint,
    model: StoredModel,
    wanted: BlockSwapArgs,
    where: Device,
    workload: AnyWorkload | None,
    notes: tuple[str, ...] = (),
) -> FoundModel:
    """What a plan for the model is made of; `notes` are sentences for it."""
    facts = replace(facts_of_checkpoint(model, where), notes=notes)
    basis = Basis(
        facts=facts,
        selection=select(wanted, model.live.layout),
        args=wanted,
        foresight=foresee(model.live, workload, where, facts.units),
    )
    return FoundModel(checkpoint, model, basis, checkpoint.notes)


def _is_plain(path: object) -> bool:
    """Whether it is no folder at all; what it is then is for others to say."""
    return not isinstance(path, (str, os.PathLike)) or not os.path.isdir(path)


def _file(source: Source) -> Path:
    path = input_path(source.path)
    return path if source.subfolder is None else path / source.subfolder


def _dtype(checkpoint: Checkpoint, asked: torch.dtype | None) -> torch.dtype:
    """What was asked, or the dtype of most of the file's bytes."""
    name = main_dtype(checkpoint.tensors.values())
    return asked or (torch.float32 if name is None else torch_dtype(name))
