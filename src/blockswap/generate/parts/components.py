"""The parts of one pipeline as values, and which of them do not belong together."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import CheckpointError
from ...layout.stamp import stamp_of

TRANSFORMERS = ("WanTransformer3DModel", "WanVACETransformer3DModel")
VAE = "AutoencoderKLWan"
TOKENIZER_IN_FILE = "TokenizerInFile"  # the class of a tokenizer that lies in an encoder's file
WEIGHTS = (".safetensors", ".gguf")
# How a part is read: by its library from a folder, from a single file, or from its config alone.
Source = Literal["library", "file", "config"]


@dataclass(frozen=True, slots=True)
class Part:
    """One component: its folder or file, its class by name, its config, and how it is read.

    `members` are its files where the folder holds others', too, `modules` those that go onto it.
    """

    path: Path
    class_name: str
    config: Mapping[str, Any]
    source: Source = "library"
    members: tuple[Path, ...] = ()
    modules: tuple[Path, ...] = ()

    @property
    def weights(self) -> Path | tuple[Path, ...]:
        """What the ways in open it by."""
        return (self.path, *self.modules) if self.modules else self.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it consists of."""
        if self.source == "config":
            return ()
        if self.members or self.path.is_file():
            return (*(self.members or (self.path,)), *self.modules)
        own = sorted(file for file in self.path.iterdir() if file.is_file())
        return (*own, *self.modules)

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weight files."""
        if self.config.get("weightless"):
            return 0
        return sum(file.stat().st_size for file in self.files if file.suffix in WEIGHTS)

    @property
    def stamp(self) -> str:
        """What changes when a file of the part is edited or replaced: names, sizes and times."""
        if self.source == "config":
            return json.dumps(dict(self.config), sort_keys=True)
        stamps = [(file.name, stamp_of(file.stat())) for file in self.files]
        return json.dumps([(name, stamp.size, stamp.mtime_ns) for name, stamp in stamps])


@dataclass(frozen=True, slots=True)
class Components:
    """The parts of one pipeline. Two transformers are Wan 2.2's experts, high noise first.

    `notes` are sentences on what was assumed because no file says it.
    """

    folder: Path
    transformers: tuple[Part, ...]
    text_encoder: Part
    tokenizer: Part
    vae: Part
    scheduler: Part
    image_encoder: Part | None
    image_processor: Part | None
    boundary_ratio: float | None
    expand_timesteps: bool
    pipeline: str | None = None  # the class that runs them, where it is no choice
    notes: tuple[str, ...] = ()

    @property
    def is_vace(self) -> bool:
        return self.transformers[0].class_name == TRANSFORMERS[1]

    @property
    def reads_image(self) -> bool:
        """Whether the transformer reads an image's latents beside the noisy ones."""
        return reads_image(self.transformers[0])

    @property
    def pixels_per_latent(self) -> int:
        return int(self.vae.config.get("scale_factor_spatial") or 8)


def reads_image(transformer: Part) -> bool:
    """Whether a transformer has more channels in than out."""
    config = transformer.config
    return bool(config.get("in_channels", 16) != config.get("out_channels", 16))


def refuse_mismatch(parts: Components) -> None:
    """Raises CheckpointError where VAE, encoder and transformers are not of one model."""
    if parts.vae.class_name != VAE:
        raise CheckpointError(
            f"the VAE in {parts.vae.path} is an {parts.vae.class_name}, and Wan's latents are "
            f"decoded by {VAE}: put the VAE of the model there"
        )
    latent = int(parts.vae.config.get("z_dim", 16))
    text = parts.text_encoder.config.get("d_model")
    for part in parts.transformers:
        made = int(part.config.get("out_channels") or 16)
        if made != latent:
            raise CheckpointError(
                f"the transformer in {part.path} makes latents of {made} channels, and the VAE "
                f"in {parts.vae.path} reads {latent}: they are of two models, give one's parts"
            )
        read = int(part.config.get("text_dim") or 4096)
        if text is not None and read != int(text):
            raise CheckpointError(
                f"the transformer in {part.path} reads texts of {read} numbers a token, and the "
                f"text encoder in {parts.text_encoder.path} makes {text}: give Wan's, UMT5-XXL"
            )
    kinds = {(part.class_name, reads_image(part)) for part in parts.transformers}
    if len(kinds) > 1:
        names = " and ".join(str(part.path) for part in parts.transformers)
        raise CheckpointError(
            f"{names} are transformers of different kinds: give the two experts of one model"
        )
