"""Opening a LoRA file: its header, its alphas, and what PEFT or diffusers says beside it.

One gate: safetensors only (no pickle is ever read), every key understood or named, every alpha a
finite number. The factors themselves are read later, by the engine, as the file holds them.
"""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..decode.additions import Strength
from ..errors import CheckpointError
from ..layout.header import FileHeader, FileTensor, read_header
from ..layout.quoting import quote, some
from ..layout.stamp import stamp_of, verify_unchanged
from ..paths import input_path
from .peft_config import CONFIG_NAME, PeftConfig, peft_config
from .request import Lora
from .spelling import PEFT_PREFIX, foreign_adapter, layers_of

_FOLDER_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_FACTOR_DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's adapter: its tensors by part, and the file's alpha, None where none is known."""

    path: str
    parts: Mapping[str, FileTensor]
    alpha: float | None
    rank: float | None = None  # as PEFT states it; else the factors say it
    root_of_rank: bool = False  # rsLoRA divides by the root of the rank


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA file that is understood; `label` is its name, `asked` what the caller wrote.

    `strength` is what it is added at now.
    """

    asked: Lora
    label: str
    header: FileHeader
    layers: tuple[Layer, ...]
    strength: Strength


def open_lora(asked: Lora) -> LoraFile:
    """Reads what a LoRA file holds, without its factors. Raises CheckpointError."""
    path = _file_of(input_path(asked.path))
    header = read_header(path)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    _refuse_foreign(path, tensors)
    layers, strange = layers_of(tensors)
    if strange or not layers:
        what = f"{some(strange)}" if strange else "nothing"
        raise CheckpointError(
            f"{path} was given as a LoRA, and {len(strange)} of its {len(tensors)} tensors are no "
            f"adapter's ({what}): give a LoRA, LoHa, LoKr, DoRA or difference in safetensors"
        )
    config = peft_config(path, header, beside=path.name == _FOLDER_NAMES[0])
    alphas = _alphas(path, [parts["alpha"] for parts in layers.values() if "alpha" in parts])
    if config is None and not alphas and any(name.startswith(PEFT_PREFIX) for name in tensors):
        raise CheckpointError(
            f"{path} is spelled as PEFT does, which keeps the alpha in {CONFIG_NAME}, and there "
            "is none beside it: put it there, or save the LoRA with its alphas"
        )
    found = tuple(_layer(name, parts, tensors, alphas, config) for name, parts in layers.items())
    _refuse_dtypes(path, found)
    if config is not None and config.dora:
        _refuse_no_dora(path, found)
    return LoraFile(asked, path.name, header, found, Strength(float(asked.strength)))


def read_factors(file: LoraFile, tensors: Iterable[FileTensor]) -> dict[str, Any]:
    """Tensors of the file by name, each in host memory of its own.

    Raises ReadError if the file was edited.
    """
    verify_unchanged(file.header)
    with safe_open(file.header.path, framework="pt") as opened:
        return {tensor.name: opened.get_tensor(tensor.name).clone() for tensor in tensors}


def is_file_of(file: LoraFile, asked: Lora) -> bool:
    """Whether the LoRA that is asked for is what was read: that file, unchanged, as much of it."""
    path = _file_of(input_path(asked.path))
    if path != file.header.path or asked.partial != file.asked.partial:
        return False
    return stamp_of(os.stat(path)) == file.header.stamp


def files_of(asked: Lora) -> tuple[Path, ...]:
    """All that the adapter is read from: its file, and PEFT's configuration where one is beside."""
    path = _file_of(input_path(asked.path))
    config = path.with_name(CONFIG_NAME)
    return (path, config) if config.is_file() else (path,)


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"the LoRA {path} is not there: check the path")
        return path
    for name in _FOLDER_NAMES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"the folder {path} was given as a LoRA and holds neither of {', '.join(_FOLDER_NAMES)}: "
        "give the file"
    )


def _refuse_foreign(path: Path, names: Mapping[str, FileTensor]) -> None:
    foreign = foreign_adapter(names)
    if foreign is not None:
        raise CheckpointError(
            f"{path} is {foreign[1]} (it holds {quote(foreign[0])}), which is not read: give the "
            "LoRA in its plain form"
        )
    seconds = [name for name in names if name.startswith("transformer_2.")]
    if seconds:
        raise CheckpointError(
            f"{path} holds LoRAs for two transformers ({len(seconds)} of its tensors are of "
            "transformer_2): save one file for each expert"
        )


def _layer(
    path: str,
    parts: Mapping[str, str],
    tensors: Mapping[str, FileTensor],
    alphas: Mapping[str, float],
    config: PeftConfig | None,
) -> Layer:
    own = {part: tensors[name] for part, name in parts.items() if part != "alpha"}
    if "alpha" in parts:
        return Layer(path, own, alphas[parts["alpha"]])
    if config is None:
        return Layer(path, own, None)
    return Layer(path, own, config.alpha_of(path), config.rank_of(path), config.root_of_rank)


def _alphas(path: Path, names: list[str]) -> dict[str, float]:
    """The values of the alphas, which are one number each."""
    found: dict[str, float] = {}
    if not names:
        return found
    with safe_open(path, framework="pt") as file:
        for name in names:
            tensor = file.get_tensor(name)
            value = float(tensor.item()) if tensor.numel() == 1 else math.nan
            if not math.isfinite(value):
                raise CheckpointError(
                    f"{path}: {quote(name)} is no finite number, and an alpha is: the file is "
                    "damaged, download it again"
                )
            found[name] = value
    return found


def _refuse_no_dora(path: Path, layers: tuple[Layer, ...]) -> None:
    """Where PEFT says that the adapter is a DoRA, each of its layers has a magnitude."""
    for layer in layers:
        if "up" in layer.parts and "magnitude" not in layer.parts:
            raise CheckpointError(
                f"{path} is said to be a DoRA, and {quote(layer.path)} has no magnitude: the file "
                "is damaged, download it again"
            )


def _refuse_dtypes(path: Path, layers: tuple[Layer, ...]) -> None:
    for layer in layers:
        for tensor in layer.parts.values():
            if tensor.dtype not in _FACTOR_DTYPES:
                raise CheckpointError(
                    f"{path}: {quote(tensor.name)} is in {tensor.dtype}, and an adapter is read in "
                    f"{', '.join(_FACTOR_DTYPES)}: save it in one of these"
                )
