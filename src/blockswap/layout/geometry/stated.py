"""What a checkpoint says of itself: this module owns reading metadata and config.json as figures.

Heads, VACE positions, eps and the length of the rope table cannot be seen in shapes and are taken
from here; everything else that is stated is a claim that the tensors must bear out (`claims`).
Metadata states a figure as `wan.` and its name. Official files state nothing and need nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import GeometryError
from ..checkpoint import STATED_PREFIX, Checkpoint
from ..quoting import quote

PREFIX = STATED_PREFIX
HEADS_KEY = "wan.num_heads"
VACE_KEY = "wan.vace_layers"
LAYERS_KEY = "wan.num_layers"
EPS_KEY = "wan.eps"
ROPE_KEY = "wan.rope_max_seq_len"
# Of a rope table, which is computed when a file is opened: a forged figure must not fill memory.
MOST_POSITIONS = 65_536
_COUNT = re.compile(r"[1-9][0-9]{0,5}")
_COUNTS = re.compile(r"[0-9]{1,6}(,[0-9]{1,6})*")
_NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]{1,20})?(e-?[0-9]{1,3})?")
_WORDS: Mapping[str, bool | None] = {"true": True, "false": False, "none": None}
_HEADS = ("num_heads", "num_attention_heads")
_LISTS = ("vace_layers", "patch_size")


@dataclass(frozen=True, slots=True)
class Stated:
    """What shapes cannot show, where the checkpoint says it; None where it does not.

    `claims` is all else that is said: (source, name) -> value, None where none is said to be.
    """

    num_heads: int | None = None
    head_dim: int | None = None
    vace_layers: tuple[int, ...] | None = None
    eps: float | None = None
    rope_max_seq_len: int | None = None
    claims: Mapping[tuple[str, str], Any] | None = None

    @property
    def says_heads(self) -> bool:
        return self.num_heads is not None or self.head_dim is not None

    def claimed(self, name: str) -> list[Any]:
        """Every value that is stated for `name`; empty where nothing says anything of it."""
        return [value for (_, said), value in (self.claims or {}).items() if said == name]


def stated_by(checkpoint: Checkpoint) -> Stated:
    """Reads metadata and config. Raises GeometryError where they are malformed or disagree."""
    config, label = checkpoint.config or {}, checkpoint.label
    told = _Told(label, _from_metadata(checkpoint), config)
    claims = {("the metadata", name): value for name, value in told.metadata.items()}
    claims |= {("config.json", name): value for name, value in config.items()}
    return Stated(
        num_heads=_heads(told),
        head_dim=told.figure("head size", "attention_head_dim", _is_count, "a number of values"),
        vace_layers=_layers(told),
        eps=told.figure("eps", "eps", _is_small, "a small positive number"),
        rope_max_seq_len=told.figure(
            "rope_max_seq_len",
            "rope_max_seq_len",
            _is_table,
            f"a number of positions up to {MOST_POSITIONS:,}",
        ),
        claims=claims,
    )


@dataclass(frozen=True, slots=True)
class _Told:
    label: str
    metadata: Mapping[str, Any]
    config: Mapping[str, Any]

    def figure(self, what: str, name: str, accepts: Any, wanted: str) -> Any:
        """What metadata and config say of `name`, as one."""
        said = []
        for prefix, source in ((PREFIX, self.metadata), ("", self.config)):
            value = source.get(name)
            if value is not None and not accepts(value):
                raise _malformed(self.label, prefix + name, value, wanted)
            said.append(value)
        return self.agreed(what, *said)

    def agreed(self, what: str, metadata: Any, config: Any) -> Any:
        if metadata is not None and config is not None and metadata != config:
            raise GeometryError(
                f"{self.label}: the file's metadata says {what} = {metadata}, config.json "
                f"{config}: remove the one that is wrong"
            )
        return config if metadata is None else metadata


def _from_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """`wan.NAME` entries as a config.json would have them: whole numbers, words, lists, texts."""
    found: dict[str, Any] = {}
    for key, text in checkpoint.metadata.items():
        name = key.removeprefix(PREFIX)
        if name != key:
            found[name] = _value(checkpoint.label, name, text)
    return found


def _value(label: str, name: str, text: str) -> Any:
    if name in _HEADS:
        if not _COUNT.fullmatch(text):
            raise _malformed(label, PREFIX + name, text, "a number of heads")
        return int(text)
    if name in _LISTS:
        if not _COUNTS.fullmatch(text):
            raise _malformed(label, PREFIX + name, text, "a list of layers such as 0,5,10")
        return [int(part) for part in text.split(",")]
    if _COUNT.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else _WORDS.get(text, text)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_table(value: Any) -> bool:
    return _is_count(value) and value <= MOST_POSITIONS


def _is_small(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _heads(told: _Told) -> int | None:
    """The vendors and diffusers call them differently; where both are there they must agree."""
    said: list[int | None] = []
    for prefix, source in ((PREFIX, told.metadata), ("", told.config)):
        found = {name: source[name] for name in _HEADS if source.get(name) is not None}
        for name, value in found.items():
            if not _is_count(value):
                raise _malformed(told.label, prefix + name, value, "a number of heads")
        if len(set(found.values())) > 1:
            both = " and ".join(f"{prefix}{name} = {value}" for name, value in found.items())
            raise GeometryError(f"{told.label} states {both}: remove the one that is wrong")
        said.append(next(iter(found.values()), None))
    heads: int | None = told.agreed("heads", *said)
    return heads


def _layers(told: _Told) -> tuple[int, ...] | None:
    value = told.figure("VACE layers", "vace_layers", _is_layers, "a list of layers, [0, 5, 10]")
    return None if value is None else tuple(value)


def _is_layers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _malformed(label: str, key: str, value: object, wanted: str) -> GeometryError:
    return GeometryError(
        f"{label} states {key} = {quote(value)}, which is not {wanted}: correct it or remove it"
    )
