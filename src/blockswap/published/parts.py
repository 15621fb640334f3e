"""Which VAE and text encoders stand beside a folder's transformer: its own, else known ones."""

from dataclasses import replace
from pathlib import Path

from ..layout.shards import CONFIG_NAME, read_object
from .record import Family, Part

_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def with_parts_of(family: Family, pipeline: Path) -> tuple[Family, tuple[str, ...]]:
    """The family with the parts that a pipeline's folder holds, and what is said of others.

    A part counts where it is of the class that the family has there.
    """
    missing = []
    vae = _stated(pipeline / "vae", family.vae)
    if vae is None:
        missing.append("VAE")
    encoders = []
    for name, encoder in zip(_ENCODERS, family.encoders, strict=False):
        part = _stated(pipeline / name, encoder.part)
        encoders.append(encoder if part is None else replace(encoder, part=part))
        if part is None:
            missing.append("text encoder" if name == _ENCODERS[0] else name.replace("_", " "))
    said: tuple[str, ...] = ()
    if missing:
        said = (
            f"no {' and no '.join(missing)} of the known class lies beside the transformer: "
            f"counted as published for {family.grid.whose}",
        )
    return replace(family, vae=vae or family.vae, encoders=tuple(encoders)), said


def _stated(folder: Path, known: Part) -> Part | None:
    """What the part's config.json says, where it is of the known class."""
    if not (folder / CONFIG_NAME).is_file():
        return None
    config = read_object(folder / CONFIG_NAME)
    classes = [config.get("_class_name"), *(config.get("architectures") or ())]
    if known.class_name not in classes:
        return None
    return Part(known.class_name, {k: v for k, v in config.items() if not k.startswith("_")})
