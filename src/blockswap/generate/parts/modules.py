"""Which modules go onto which transformer, and what the transformer is with them."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import CheckpointError
from ...layout.checkpoint import Checkpoint, open_checkpoint
from ...layout.formats import unpacked
from ...layout.geometry import infer_geometry
from ...layout.geometry.joined import joined
from ...paths import input_path
from .components import TRANSFORMERS, Part

HIGH, LOW = re.compile(r"high", re.IGNORECASE), re.compile(r"low", re.IGNORECASE)


def with_modules(transformers: tuple[Part, ...], modules: Sequence[Path]) -> tuple[Part, ...]:
    """Transformers with the files of modules on them.

    Of two experts a module goes onto the one that its name tells, else onto both. Raises
    CheckpointError for a file that is not there, and what joining them raises.
    """
    made = list(transformers)
    for module in map(input_path, modules):
        if not module.exists():
            raise CheckpointError(
                f"{module} was given as a module, and it is not there: check the path"
            )
        for number in _experts_of(module.name, len(made)):
            made[number] = replace(made[number], modules=(*made[number].modules, module))
    return tuple(map(_joined, made))


def _experts_of(name: str, transformers: int) -> range:
    told = [bool(sign.search(name)) for sign in (HIGH, LOW)]
    if transformers == 1 or told[0] == told[1]:
        return range(transformers)
    return range(told.index(True), told.index(True) + 1)


def _joined(part: Part) -> Part:
    if not part.modules:
        return part
    files = (part.path, *part.modules)
    geometry = infer_geometry(joined([_opened(file) for file in files]))
    return replace(part, class_name=TRANSFORMERS[bool(geometry.vace_layers)])


def _opened(path: Path) -> Checkpoint:
    return unpacked(open_checkpoint(path))
