"""What PEFT's configuration says of an adapter: its alphas, and what makes it no plain adapter.

It stands in adapter_config.json beside the file, or, as diffusers notes it, in the file's header.
What would compute otherwise than the factors alone say is refused, by the name that PEFT gives it.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..layout.header import FileHeader
from ..layout.quoting import quote
from ..layout.strictjson import JsonRefused, parse_object

CONFIG_NAME = "adapter_config.json"
_LIMIT = 1_000_000  # bytes
_NOTE = "lora_adapter_metadata"
_KINDS = ("LORA", "LOHA", "LOKR")
# How factors begin that leave the model's weights as they are; all others (PiSSA, OLoRA, CorDA,
# LoftQ, ...) take a part out of them, at loading too.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "lycoris")
# What adds more, or for some inputs only, than the factors multiplied.
_MORE = (
    "fan_in_fan_out", "use_qalora", "alora_invocation_tokens", "layer_replication",
    "velora_config", "monteclora_config", "kasa_config", "use_bdlora", "arrow_config",
)  # fmt: skip
_LAYER = re.compile(r"\^?(?:\w|\\?\.)+\$?")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """Alphas and ranks, of all layers and of some; `root_of_rank`: rsLoRA; `dora`: all are."""

    alpha: float
    alphas: Mapping[str, float]
    rank: float | None
    ranks: Mapping[str, float]
    root_of_rank: bool
    dora: bool

    def alpha_of(self, path: str) -> float:
        return self.alpha if (own := _of(self.alphas, path)) is None else own

    def rank_of(self, path: str) -> float | None:
        return self.rank if (own := _of(self.ranks, path)) is None else own


def peft_config(path: Path, header: FileHeader, *, beside: bool) -> PeftConfig | None:
    """From the header, or (`beside`) from the file there. None: nothing is said of this model.

    Raises CheckpointError.
    """
    note, file = header.metadata.get(_NOTE), path.parent / CONFIG_NAME
    try:
        if note is not None:
            given = parse_object(note.encode())
            # Under the names of the pipeline's models; a text encoder's is none of ours.
            own = {k.removeprefix("transformer."): given[k] for k in given}
            found = {key: value for key, value in own.items() if "." not in key}
            return _read(path, found) if found else None
        if beside and file.is_file():
            if os.stat(file).st_size > _LIMIT:
                raise CheckpointError(f"{file} is too large for what it is: download it again")
            return _read(file, parse_object(file.read_bytes()))
    except JsonRefused as error:
        raise CheckpointError(f"{path}: its adapter's configuration {error}") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}): check it") from error
    return None


def _read(path: Path, given: Mapping[str, Any]) -> PeftConfig:
    _refuse_kinds(path, given)
    alpha = given.get("lora_alpha", given.get("alpha"))
    rank, ranks = given.get("r"), _numbers(path, given, "rank_pattern")
    return PeftConfig(
        alpha=_number(path, "alpha", alpha),
        alphas=_numbers(path, given, "alpha_pattern"),
        rank=None if rank is None else _number(path, "r", rank),
        ranks=ranks,
        root_of_rank=bool(given.get("use_rslora")),
        dora=bool(given.get("use_dora")),
    )


def _refuse_kinds(path: Path, given: Mapping[str, Any]) -> None:
    kind = given.get("peft_type", "LORA")
    if kind not in _KINDS:
        raise CheckpointError(
            f"{path} says that its adapter is {quote(kind)}, which is not read: give a LoRA, "
            "LoHa or LoKr"
        )
    for name in ("init_lora_weights", "init_weights"):
        start = given.get(name)
        if not any(start is plain or start == plain for plain in _PLAIN_STARTS):
            raise CheckpointError(
                f"{path} says {name}={quote(start)}, which takes a part out of the model's own "
                "weights: save it as a plain LoRA (PEFT's save_pretrained with "
                "path_initial_model_for_weight_conversion)"
            )
    found = [name for name in _MORE if given.get(name)]
    if found:
        raise CheckpointError(
            f"{path} says {found[0]}={quote(given[found[0]])}, which is not computed here: give a "
            "plain LoRA, LoHa, LoKr or DoRA"
        )


def _numbers(path: Path, given: Mapping[str, Any], name: str) -> dict[str, float]:
    """A number for each of some layers; PEFT takes regular expressions, of which names are read."""
    patterns = given.get(name) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{path}: {name} in its configuration is {quote(patterns)}")
    for layer in patterns:
        if not _LAYER.fullmatch(layer):
            raise CheckpointError(
                f"{path}: {name} in its configuration has the expression {quote(layer)}, and "
                "only names of layers are read: write it out, or save the LoRA with its alphas"
            )
    plain = {layer.strip("^$").replace("\\", ""): value for layer, value in patterns.items()}
    return {layer: _number(path, name, value) for layer, value in plain.items()}


def _number(path: Path, name: str, value: Any) -> float:
    fine = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fine or not math.isfinite(value):
        raise CheckpointError(
            f"{path}: its configuration has the {name} {quote(value)}, and a number is needed: "
            "save the adapter again with PEFT or diffusers"
        )
    return float(value)


def _of(layers: Mapping[str, float], path: str) -> float | None:
    """What is said of the first layer that `path` ends with, as PEFT looks for it."""
    found = (number for name, number in layers.items() if f".{path}".endswith(f".{name}"))
    return next(found, None)
