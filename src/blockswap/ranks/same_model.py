"""Whether all ranks were given the same files, LoRAs and model, and the sentence where not.

Ranks that share weights, or bring each other parts of them, would else compute with another rank's
without a word. Ranks of one host must open one file; those of two hosts files with one header and
the same bytes where they are looked at: everywhere in small files, else within each tensor and
every 16 MiB. What is read whole at opening is compared whole (`host_contents`).
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters.live import LiveModel
from ..errors import ModelError
from ..layout.header import FileHeader
from ..layout.stamp import FileStamp, verify_unchanged
from ..layout.values import Leaf
from ..lora.request import Lora
from .group import Ranks

SMALL_BYTES = 64 << 20  # a file that two hosts read whole to compare it
STRIDE_BYTES, LOOK_BYTES = 16 << 20, 4096

# For each unit, and "" for the parameters outside: the names of its tensors, and their leaves.
_Described = list[tuple[str, list[tuple[str, tuple[Leaf, ...]]]]]


@dataclass(frozen=True, slots=True)
class _File:
    """A file as the ranks of all hosts see it (`content`), and as those of one host do."""

    path: str
    content: int
    stamp: FileStamp


def refuse_other_files(ranks: Ranks, headers: Sequence[FileHeader]) -> None:
    """Raises ModelError, on all ranks or on none, where one of them opens another file.

    LoRAs are among `headers`. Every rank must call it; what follows, too.
    """
    with ranks.together("look at the files"):
        across = len(set(ranks.hosts)) > 1
        files = [_File(str(h.path), _content(h, looks=across), h.stamp) for h in headers]
    told, me = ranks.agree("compare files", files), ranks.ranks[0]
    hosts = dict(zip(ranks.ranks, ranks.hosts, strict=True))
    with ranks.together("compare files"):
        for rank, others in told.items():
            for one, other in _pairs(told[me], others, "files", me, rank):
                _refuse_other_file(one, other, me, rank, same_host=hosts[rank] == hosts[me])


def refuse_other_loras(ranks: Ranks, loras: Sequence[Lora]) -> None:
    """The same for the names and strengths of LoRAs."""
    named = [(Path(lora.path).name, float(lora.strength)) for lora in loras]
    told = ranks.agree("compare LoRAs", named)
    me = ranks.ranks[0]
    with ranks.together("compare LoRAs"):
        for rank, others in told.items():
            for one, other in _pairs(told[me], others, "LoRAs", me, rank):
                if one != other:
                    raise ModelError(
                        f"rank {rank} adds {other[0]} at {other[1]:g} and rank {me} {one[0]} at "
                        f"{one[1]:g}: give every rank the same LoRAs at the same strengths"
                    )


def refuse_other_models(ranks: Ranks, live: LiveModel) -> None:
    """The same for the model's tensors and, where it says so, its configuration."""
    told = ranks.agree("compare models", (_described(live), _config(live.root)))
    me = ranks.ranks[0]
    (first, config) = told[me]
    with ranks.together("compare models"):
        for rank, (other, its) in told.items():
            if other != first:
                raise ModelError(
                    f"rank {rank} has another model than rank {me} "
                    f"({_difference(first, other)}): give every rank the same model"
                )
            for name in sorted(config.keys() | its.keys()):
                if config.get(name) != its.get(name):
                    raise ModelError(
                        f"the model of rank {rank} is configured with {name}={its.get(name)}, that "
                        f"of rank {me} with {config.get(name)}: give every rank the same model"
                    )


def _pairs(
    first: Sequence[Any], other: Sequence[Any], noun: str, me: int, rank: int
) -> Sequence[tuple[Any, Any]]:
    if len(first) != len(other):
        raise ModelError(
            f"rank {rank} was given {len(other)} {noun} and rank {me} {len(first)}: give every "
            "rank the same"
        )
    return list(zip(first, other, strict=True))


def _refuse_other_file(one: _File, other: _File, me: int, rank: int, *, same_host: bool) -> None:
    if one.content != other.content or one.stamp.size != other.stamp.size:
        why = "which is another file"
    elif same_host and one.stamp != other.stamp:
        why = "which is no link to it but a file of its own, on the same host"
    else:
        return
    raise ModelError(
        f"rank {rank} opens {other.path} and rank {me} {one.path}, {why}: give every rank the same "
        "file, and write it before any of them opens it"
    )


def _content(header: FileHeader, *, looks: bool) -> int:
    """A sum of the header and, with `looks`, of what stands behind it. Raises ReadError."""
    found = zlib.crc32(repr((header.data_start, header.tensors)).encode())
    if not looks:
        return found
    verify_unchanged(header)
    with header.path.open("rb") as file:
        for start in _places(header):
            file.seek(start)
            found = zlib.crc32(file.read(LOOK_BYTES), found)
    return found


def _places(header: FileHeader) -> Sequence[int]:
    """Where to look at a file, ascending."""
    if header.file_bytes - header.data_start <= SMALL_BYTES:
        return range(header.data_start, header.file_bytes, LOOK_BYTES)
    middles = {t.offset + max(0, t.nbytes - LOOK_BYTES) // 2 for t in header.tensors}
    return sorted(middles | {*range(header.data_start, header.file_bytes, STRIDE_BYTES)})


def _config(root: Any) -> Mapping[str, str]:
    """What the model says of itself, where it is a library's: names that begin with _ are notes."""
    config: Any = getattr(root, "config", None)
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        return {}
    return {str(k): repr(v) for k, v in config.items() if not str(k).startswith("_")}


def _described(live: LiveModel) -> _Described:
    groups = [(unit.layout.name, unit.tensors) for unit in live.units]
    groups.append(("", live.parameters_outside))
    return [(name, [(t.spec.name, t.spec.leaves) for t in tensors]) for name, tensors in groups]


def _difference(first: _Described, other: _Described) -> str:
    if len(first) != len(other):
        return f"{len(other) - 1} units, not {len(first) - 1}"
    for one, two in zip(first, other, strict=True):
        if one != two:
            return f"{one[0] or 'the part outside the blocks'} differs"
    return "it differs"
