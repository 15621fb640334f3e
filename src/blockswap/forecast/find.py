"""Which model is meant: a file or folder that is there, else a published name, Wan's or another."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import ArgsError
from ..layout.checkpoint import open_checkpoint
from ..layout.formats import unpacked
from ..layout.geometry.joined import joined
from ..layout.shards import GGUF_SUFFIX, SUFFIX
from ..lora.file import LoraFile
from ..paths import is_there
from ..published import find_published
from .figures import PUBLISHED_DTYPE, ModelFigures, figures_of_file, figures_of_variant
from .published_figures import figures_of_published


def find_model(
    name: str,
    dtype: str | None = None,
    loras: Sequence[LoraFile] = (),
    modules: Sequence[Path] = (),
) -> ModelFigures:
    """A model by the path of its file or folder, or by its published name.

    `dtype` is what it computes in; by default the file's own types, bfloat16 for a published name.
    `loras` are merged when a block arrives, and their factors counted with it. `modules` are files
    that go onto the model's.
    Raises ArgsError for a name that is neither, CheckpointError or GeometryError for the file.
    """
    path = Path(name)
    if is_there(path):
        files = [unpacked(open_checkpoint(file)) for file in (path, *modules)]
        return figures_of_file(joined(files), dtype, path, loras)
    if modules:
        raise ArgsError(
            f"--module {modules[0]} goes onto a model's file, and {name} is none that is there: "
            "give the path of one"
        )
    if name.lower().endswith((SUFFIX, GGUF_SUFFIX)) or "/" in name or "\\" in name:
        raise ArgsError(f"{name} is not there: give a checkpoint's path or a published name")
    published = find_published(name)
    if published is None:
        return figures_of_variant(name, dtype, loras)
    if loras:
        raise ArgsError(
            f"{name} is planned by its name, and LoRAs are counted for Wan's models only: leave "
            "--lora out"
        )
    return figures_of_published(published, dtype or PUBLISHED_DTYPE)
