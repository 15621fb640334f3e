"""Which parts of a pipeline a folder holds, found by what each part's config says that it is."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache import load_json
from ..errors import CheckpointError
from ..layout.stamp import stamp_of
from ..paths import input_path

TRANSFORMERS = ("WanTransformer3DModel", "WanVACETransformer3DModel")
VAE = "AutoencoderKLWan"
# By how the class is called, without the model it is of: "UMT5EncoderModel" ends so.
_ENDINGS = {"T5EncoderModel": "text encoder", "CLIPVisionModel": "image encoder"}
_ENDINGS["CLIPVisionModelWithProjection"] = "image encoder"
_CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json")
_TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "spiece.model")


@dataclass(frozen=True, slots=True)
class Part:
    """One component: its folder (or its one file), its class by name, and its config."""

    folder: Path
    class_name: str
    config: Mapping[str, Any]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it consists of."""
        if self.folder.is_file():
            return (self.folder,)
        return tuple(sorted(file for file in self.folder.iterdir() if file.is_file()))

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weight files."""
        if self.config.get("weightless"):
            return 0
        return sum(file.stat().st_size for file in self.files if file.suffix == ".safetensors")

    @property
    def stamp(self) -> str:
        """What changes when a file of the part is edited or replaced: names, sizes and times."""
        stamps = [(file.name, stamp_of(file.stat())) for file in self.files]
        return json.dumps([(name, stamp.size, stamp.mtime_ns) for name, stamp in stamps])


@dataclass(frozen=True, slots=True)
class Components:
    """The parts of one pipeline. Two transformers are Wan 2.2's experts, high noise first."""

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

    @property
    def is_vace(self) -> bool:
        return self.transformers[0].class_name == TRANSFORMERS[1]

    @property
    def reads_image(self) -> bool:
        """Whether the transformer reads an image's latents beside the noisy ones."""
        config = self.transformers[0].config
        return bool(config.get("in_channels", 16) != config.get("out_channels", 16))

    @property
    def pixels_per_latent(self) -> int:
        return int(self.vae.config.get("scale_factor_spatial") or 8)


def find_components(folder: str | os.PathLike[str]) -> Components:
    """The parts below `folder`, whatever their folders are called. Raises CheckpointError."""
    root = input_path(folder)
    if not root.is_dir():
        raise CheckpointError(
            f"{root} was given as the model, and no such folder is there: give a diffusers folder "
            "with transformer, text encoder, tokenizer, VAE and scheduler"
        )
    found: dict[str, list[Part]] = {}
    for role, part in _parts(root):
        found.setdefault(role, []).append(part)
    if not found.get("transformer"):
        raise _missing(root, f"a transformer ({' or '.join(TRANSFORMERS)})")
    index = _json(root / "model_index.json") if (root / "model_index.json").exists() else {}
    transformers = tuple(sorted(found["transformer"], key=lambda part: part.folder.name))
    if len(transformers) > 2:
        raise CheckpointError(f"{root} holds {len(transformers)} transformers: give one or two")
    ratio = index.get("boundary_ratio")
    if len(transformers) == 2 and ratio is None:
        raise CheckpointError(
            f"{root} holds two transformers, and its model_index.json does not say at which noise "
            "the second takes over (boundary_ratio): add it, 0.875 for T2V and 0.9 for I2V"
        )
    parts = Components(
        folder=root,
        transformers=transformers,
        text_encoder=_one(root, found, "text encoder"),
        tokenizer=_one(root, found, "tokenizer"),
        vae=_one(root, found, "VAE"),
        scheduler=_one(root, found, "scheduler"),
        image_encoder=found.get("image encoder", [None])[0],
        image_processor=found.get("image processor", [None])[0],
        boundary_ratio=ratio,
        expand_timesteps=bool(index.get("expand_timesteps", False)),
    )
    _refuse_mismatch(parts)
    return parts


def _parts(root: Path) -> Iterator[tuple[str, Part]]:
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        config = next((folder / name for name in _CONFIGS if (folder / name).exists()), None)
        if config is not None:
            told = _json(config)
            name = _class_of(told, config.name)
            role = _role_of(name, config.name)
            if role is not None:
                yield role, Part(folder, name, told)
        elif any((folder / name).exists() for name in _TOKENIZERS):
            yield "tokenizer", Part(folder, "AutoTokenizer", {})


def _class_of(told: Mapping[str, Any], file: str) -> str:
    if file == "preprocessor_config.json":
        return str(told.get("image_processor_type", "CLIPImageProcessor"))
    return str(told.get("_class_name") or (told.get("architectures") or [""])[0])


def _role_of(name: str, file: str) -> str | None:
    if file == "scheduler_config.json":
        return "scheduler"
    if file == "preprocessor_config.json":
        return "image processor"
    if name in TRANSFORMERS:
        return "transformer"
    if name.startswith("Autoencoder"):
        return "VAE"
    return next((role for ending, role in _ENDINGS.items() if name.endswith(ending)), None)


def _one(root: Path, found: Mapping[str, list[Part]], role: str) -> Part:
    parts = found.get(role, [])
    if not parts:
        raise _missing(root, f"a {role}")
    if len(parts) > 1:
        names = ", ".join(part.folder.name for part in parts)
        raise CheckpointError(f"{root} holds more than one {role} ({names}): leave one there")
    return parts[0]


def _refuse_mismatch(parts: Components) -> None:
    if parts.vae.class_name != VAE:
        raise CheckpointError(
            f"the VAE in {parts.vae.folder} is an {parts.vae.class_name}, and Wan's latents are "
            f"decoded by {VAE}: put the VAE of the model there"
        )
    latent = int(parts.vae.config.get("z_dim", 16))
    for part in parts.transformers:
        made = int(part.config.get("out_channels") or 16)
        if made != latent:
            raise CheckpointError(
                f"the transformer in {part.folder} makes latents of {made} channels, and the VAE "
                f"in {parts.vae.folder} reads {latent}: they are of two models, give one's parts"
            )


def _missing(root: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{root} holds no folder with {what}: a whole pipeline needs transformer, text encoder, "
        "tokenizer, VAE and scheduler, each in a folder with its config"
    )


def _json(path: Path) -> Mapping[str, Any]:
    try:
        told = load_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): download it again") from error
    if not isinstance(told, dict):
        raise CheckpointError(f"{path} is no JSON object: download it again")
    return told
