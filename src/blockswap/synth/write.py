"""Writing: this module owns bringing a synthesised checkpoint to disk, whole or not at all.

Everything is written under temporary names beside its destination and put in place at the very
end, shards first and their index last. Memory stays under 150 MB whatever the model's size.
"""

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArgsError, OutputError
from ..layout.geometry import Naming, WanGeometry, find_variant
from ..layout.shards import CONFIG_NAME, DIFFUSERS_STEM, INDEX_SUFFIX, SUFFIX
from ..layout.writing import (
    Meter,
    Progress,
    check_parent,
    check_room,
    put_in_place,
    refuse_occupied,
)
from ..paths import output_path
from ..published import Published, find_published
from .draw import Drawer
from .files import NewFile, index_json, plan_files
from .spec import Spec, SynthSpec

INDEX_NAME = DIFFUSERS_STEM + INDEX_SUFFIX
FOLDER_FILE = DIFFUSERS_STEM + SUFFIX
_OWN_SHARD = re.compile(rf"{DIFFUSERS_STEM}-\d{{5}}-of-\d{{5}}{re.escape(SUFFIX)}")


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: `path` is what to open (the file, or the folder of the shards)."""

    path: Path
    files: tuple[Path, ...]
    tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SynthOptions:
    """How a checkpoint is spelled and typed."""

    dtype: str
    naming: Naming | None
    prefix: str
    mixed: bool
    seed: int


def _spec(variant: str | WanGeometry | Published, options: SynthOptions) -> Spec:
    """The checkpoint to be. Raises ArgsError for options that it does not have."""
    found = find_published(variant) if isinstance(variant, str) else variant
    dtype, mixed, seed = options.dtype, options.mixed, options.seed
    if isinstance(found, Published):
        if options.prefix or options.naming == "original":
            raise ArgsError(
                f"{found.name} is written under the names of diffusers' class: leave out other "
                "names and prefixes"
            )
        from .published_spec import PublishedSpec

        return PublishedSpec(found, dtype, mixed, seed)
    geometry = find_variant(variant) if isinstance(variant, str) else found
    assert geometry is not None, "a value is what it is"
    return SynthSpec(geometry, dtype, options.naming or "original", options.prefix, mixed, seed)


def synth(  # noqa: PLR0913 - one keyword for each option of the command of the same name
    variant: str | WanGeometry | Published,
    out: str | os.PathLike[str],
    *,
    dtype: str = "bfloat16",
    naming: Naming | None = None,
    prefix: str = "",
    mixed: bool = False,
    shard_bytes: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Writes a checkpoint with random weights in a model's true geometry.

    `out` is a `.safetensors` file, or with `shard_bytes` a folder for shards and their index. A
    model beside Wan's is a folder in any case, with the config.json of its class.
    Equal arguments give equal bytes; weights of a seed do not depend on naming, prefix or
    shards. `progress` is called with bytes written and bytes in all. Raises ArgsError for
    an unknown variant or option; OutputError when there is no room, when something is there
    already and `overwrite` is not set, or when the disk fails: nothing is left behind then.
    """
    spec = _spec(variant, SynthOptions(dtype, naming, prefix, mixed, seed))
    if shard_bytes is not None and shard_bytes < 1:
        raise ArgsError(f"shard_bytes={shard_bytes} holds nothing: give at least 1 byte")
    target, config = output_path(out), spec.config()
    sharded, as_folder = shard_bytes is not None, shard_bytes is not None or config is not None
    files = plan_files(spec, FOLDER_FILE if as_folder else target.name, shard_bytes)
    _check_target(target, as_folder=as_folder, overwrite=overwrite)
    check_room(target.parent, sum(file.nbytes for file in files))
    try:
        beside = {INDEX_NAME: index_json(files)} if sharded else {}
        if config is not None:
            beside[CONFIG_NAME] = (json.dumps(config, indent=2) + "\n").encode()
        with _folder(target if as_folder else target.parent) as folder:
            job = _Job(folder, files, beside, as_folder, overwrite)
            written = _write_all(job, Drawer(spec), progress)
    except FileExistsError as error:
        raise OutputError(
            f"cannot write {target}: a file of this name came while it was made, and stays: remove "
            "it, choose another name or give --overwrite (in Python overwrite=True)"
        ) from error
    except OSError as error:
        raise OutputError(
            f"cannot write {target}: {error.strerror or error}, nothing was left there, "
            "choose a folder with room that you may write to"
        ) from error
    return Written(
        path=target,
        files=tuple(written),
        tensors=sum(len(file.tensors) for file in files),
        nbytes=sum(file.nbytes for file in files),
    )


def _check_target(target: Path, *, as_folder: bool, overwrite: bool) -> None:
    check_parent(target)
    if as_folder == target.name.endswith(SUFFIX):
        raise OutputError(
            f"cannot write the files to {target}: they go into a folder, leave out {SUFFIX}"
            if as_folder
            else f"cannot write {target}: end the file's name with {SUFFIX}, or ask for shards"
        )
    if not as_folder:
        refuse_occupied(target, overwrite=overwrite)
        return
    if os.path.lexists(target) and not target.is_dir():
        raise OutputError(
            f"cannot write {target}: a file of this name is there, choose another name"
        )
    occupied = target.exists() and any(target.iterdir())
    if occupied and not overwrite:
        raise OutputError(
            f"cannot write {target}: it is there already, choose another name or let it be "
            "replaced with --overwrite (in Python overwrite=True)"
        )


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """The folder to write in; one that was made here goes again on failure."""
    made = not path.exists()
    path.mkdir(exist_ok=True)
    try:
        yield path
    except BaseException:
        if made:
            # It stays only where something else was put into it meanwhile.
            with suppress(OSError):
                path.rmdir()
        raise


@dataclass(frozen=True, slots=True)
class _Job:
    folder: Path
    files: Sequence[NewFile]
    beside: Mapping[str, bytes]
    as_folder: bool
    overwrite: bool


def _write_all(job: _Job, drawer: Drawer, progress: Progress | None) -> list[Path]:
    """Writes under temporary names, then renames; on failure no temporary file stays."""
    folder, files = job.folder, job.files
    mark = secrets.token_hex(4)
    partial = {folder / f".{file.name}.{mark}": folder / file.name for file in files}
    meter = Meter(sum(file.nbytes for file in files), progress)
    try:
        for path, file in zip(partial, files, strict=True):
            _write_file(path, file, drawer, meter)
        for name, content in job.beside.items():
            partial[folder / f".{name}.{mark}"] = folder / name
            (folder / f".{name}.{mark}").write_bytes(content)
        for path, final in partial.items():
            put_in_place(path, final, overwrite=job.overwrite)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
    if job.as_folder:
        _drop_older_files(folder, keep={path.name for path in partial.values()})
    return list(partial.values())


def _write_file(path: Path, file: NewFile, drawer: Drawer, meter: Meter) -> None:
    with path.open("xb") as stream:
        meter.add(stream.write(file.header))
        for tensor in file.tensors:
            for piece in drawer.draw(tensor.key, tensor.shape):
                meter.add(stream.write(piece))


def _drop_older_files(folder: Path, keep: set[str]) -> None:
    """Removes files of an overwritten set that had others: nothing names them any more."""
    for path in folder.iterdir():
        ours = _OWN_SHARD.fullmatch(path.name) or path.name in (INDEX_NAME, FOLDER_FILE)
        if ours and path.name not in keep:
            path.unlink()
