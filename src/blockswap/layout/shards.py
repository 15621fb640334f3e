"""Finding files: this module owns which files make up a checkpoint that a person names by one path.

A path is one `.safetensors` or `.gguf` file, an index (`*.safetensors.index.json`), a part of a
split `.gguf`, or a folder that holds an index, one such file, or all shards of one set.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .header import MAX_HEADER_BYTES
from .quoting import quote, some
from .strictjson import JsonRefused, parse_object

SUFFIX = ".safetensors"
GGUF_SUFFIX = ".gguf"
INDEX_SUFFIX = ".safetensors.index.json"
DIFFUSERS_STEM = "diffusion_pytorch_model"
CONFIG_NAME = "config.json"
_SHARD = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.gguf)", re.A
)


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """The files of a checkpoint, in shard order; `index` maps each tensor to a place in `files`."""

    label: str
    files: tuple[Path, ...]
    index: Mapping[str, int] | None
    config: Mapping[str, Any] | None


def find_files(path: Path) -> FoundFiles:
    """Resolves one path to the files to open. Raises CheckpointError."""
    if "\0" in str(path):
        raise CheckpointError(f"{quote(str(path))} has a zero byte in its name: check the path")
    if not _exists(path):
        raise CheckpointError(f"{path} is not there: check the path")
    if path.is_dir():
        return _in_folder(path)
    if path.name.endswith(INDEX_SUFFIX):
        return from_index(path, path.name.removesuffix(INDEX_SUFFIX))
    shard = _SHARD.fullmatch(path.name)
    if shard and int(shard["count"]) > 1:
        if shard["suffix"] == GGUF_SUFFIX:
            return _split_gguf(path, shard)
        raise CheckpointError(
            f"{path} is shard {int(shard['number'])} of {int(shard['count'])}: "
            f"give its index or its folder {path.parent}"
        )
    return one_file(path)


def _split_gguf(path: Path, part: re.Match[str]) -> FoundFiles:
    """All parts of a split file, which has no index and is named by any of them."""
    own = part["stem"], part["count"], part["suffix"]
    matches = (_SHARD.fullmatch(entry.name) for entry in _entries(path.parent))
    names = sorted(m[0] for m in matches if m and (m["stem"], m["count"], m["suffix"]) == own)
    _check_one_set(path.parent, names)
    return FoundFiles(part["stem"], tuple(path.parent / name for name in names), None, None)


def one_file(path: Path) -> FoundFiles:
    """A single file with what belongs to it."""
    # A config beside a file of a model folder is that model's; beside any other file, where
    # many models share a folder, it would be a stranger's.
    config = _config(path.parent) if path.name.startswith(DIFFUSERS_STEM) else None
    return FoundFiles(path.stem, (path,), None, config)


def _in_folder(folder: Path) -> FoundFiles:
    names = sorted(entry.name for entry in _entries(folder))
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if len(indices) == 1:
        return from_index(folder / indices[0], folder.name)
    if indices:
        raise CheckpointError(
            f"{folder} holds {len(indices)} indices ({some(indices)}): give the one that is meant"
        )
    files = [name for name in names if name.lower().endswith(SUFFIX)]
    named = [name for name in files if name.startswith(DIFFUSERS_STEM)]
    chosen = named or files
    if not chosen:
        chosen = [name for name in names if name.lower().endswith(GGUF_SUFFIX)]
    if not chosen:
        raise _no_weights(folder)
    if len(chosen) > 1 or _SHARD.fullmatch(chosen[0]):
        _check_one_set(folder, chosen)
    return FoundFiles(folder.name, tuple(folder / name for name in chosen), None, _config(folder))


def shards(folder: Path, names: list[str]) -> FoundFiles:
    """Files of these names as the shards of one set without an index. Raises CheckpointError."""
    _check_one_set(folder, names)
    return FoundFiles(folder.name, tuple(folder / name for name in names), None, _config(folder))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be listed ({error.strerror}): check its permissions"
        ) from error


def _no_weights(folder: Path) -> CheckpointError:
    inside = sorted(
        entry.name
        for entry in _entries(folder)
        if entry.is_dir() and any(child.name.endswith(SUFFIX) for child in _entries(entry))
    )
    if inside:
        return CheckpointError(
            f"{folder} holds no {SUFFIX} file itself, its folders {some(inside)} do: "
            "give the folder of the transformer"
        )
    return CheckpointError(
        f"{folder} holds no {SUFFIX} or {GGUF_SUFFIX} file: give a checkpoint or its folder"
    )


def _check_one_set(folder: Path, names: list[str]) -> None:
    """Several files without an index are accepted only as the complete shards of one set."""
    shards = [_SHARD.fullmatch(name) for name in names]
    sets = {(shard["stem"], int(shard["count"])) if shard else None for shard in shards}
    if len(sets) != 1 or None in sets:
        suffix = Path(names[0]).suffix.lower()
        index = " and no index" if suffix == SUFFIX else ""
        raise CheckpointError(
            f"{folder} holds {len(names)} {suffix} files ({some(names)}){index}: "
            "give the file that is meant"
        )
    count = next(iter(sets))[1]  # type: ignore[index]
    numbers = {int(shard["number"]) for shard in shards if shard}
    if strange := numbers - set(range(1, count + 1)):
        raise CheckpointError(
            f"{folder} holds shard {min(strange)} of {count}, which is of another set: "
            "remove it, or download the checkpoint again"
        )
    missing = set(range(1, count + 1)) - numbers
    if missing:
        raise CheckpointError(
            f"{folder} holds {len(names)} of {count} shards, shard {min(missing)} is missing: "
            "download it"
        )


def from_index(path: Path, label: str) -> FoundFiles:
    """The shards that an index names. Raises CheckpointError."""
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path} has no weight_map that says which shard holds what: "
            "download it again, or give a .safetensors file"
        )
    names = []
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise CheckpointError(
                f"{path} names no shard for tensor {quote(tensor)}: download it again"
            )
        names.append(name)
    files = sorted(set(names))
    for name in files:
        _check_shard_name(path, name)
    places = {name: place for place, name in enumerate(files)}
    return FoundFiles(
        label=label,
        files=tuple(path.parent / name for name in files),
        index={tensor: places[name] for tensor, name in weight_map.items()},
        config=_config(path.parent),
    )


def _check_shard_name(index: Path, name: str) -> None:
    # A downloaded index is a stranger's text: it may name files in its own folder, nothing else.
    if name in ("", ".", "..") or any(mark in name for mark in "/\\:\0"):
        raise CheckpointError(
            f"{index} points outside its own folder, at {quote(name)}: "
            "put the shards beside their index and name them plainly, or do not trust it"
        )
    if not name.endswith(SUFFIX):
        raise CheckpointError(
            f"{index} names {quote(name)}, which is no {SUFFIX} file: use a safetensors checkpoint"
        )
    if not _exists(index.parent / name):
        raise CheckpointError(f"{index} needs the shard {quote(name)}, it is missing: download it")


def _exists(path: Path) -> bool:
    """Whether a file or folder is there; a name that no file system takes is nowhere."""
    try:
        return path.exists()
    except OSError:
        return False


def _config(folder: Path) -> Mapping[str, Any] | None:
    path = folder / CONFIG_NAME
    return read_object(path) if path.is_file() else None


def read_object(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file, the size of a header at most. Raises CheckpointError."""
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is not a regular file: give a checkpoint")
        with open(path, "rb") as file:
            data = file.read(MAX_HEADER_BYTES + 1)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): check its permissions and its disk"
        ) from error
    if len(data) > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} has more than {MAX_HEADER_BYTES:,} bytes, too many for such a file: "
            "download it again"
        )
    try:
        return parse_object(data)
    except JsonRefused as error:
        raise CheckpointError(f"{path} {error}: download it again") from error
