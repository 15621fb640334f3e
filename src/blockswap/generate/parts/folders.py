"""Which part of a pipeline a folder of diffusers or transformers is, by what its config says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...cache import load_json
from ...errors import CheckpointError
from .components import TRANSFORMERS, Part

# By how the class is called, without the model it is of: "UMT5EncoderModel" ends so.
_ENDINGS = {"T5EncoderModel": "text encoder", "CLIPVisionModel": "image encoder"}
_ENDINGS["CLIPVisionModelWithProjection"] = "image encoder"
_CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json")
_TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "spiece.model")


def part_of_folder(folder: Path) -> tuple[str, Part] | None:
    """The role and the part that a folder is; None for a folder that is none. CheckpointError."""
    config = next((folder / name for name in _CONFIGS if (folder / name).exists()), None)
    if config is not None:
        told = read_config(config)
        name = _class_of(told, config.name)
        role = _role_of(name, config.name)
        if role is not None:
            return role, Part(folder, name, told)
    if any((folder / name).exists() for name in _TOKENIZERS):
        return "tokenizer", Part(folder, "AutoTokenizer", {})
    return None


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


def read_config(path: Path) -> Mapping[str, Any]:
    """A JSON object. Raises CheckpointError."""
    try:
        told = load_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): download it again") from error
    if not isinstance(told, dict):
        raise CheckpointError(f"{path} is no JSON object: download it again")
    return told
