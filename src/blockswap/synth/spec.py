"""What to synthesise: this module owns the request, checked, as one value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import ArgsError
from ..layout.geometry import Naming, WanGeometry, tensor_names, to_diffusers_key
from ..layout.geometry.restated import all_statements
from ..layout.prefix import PREFIXES

# the element types that Wan checkpoints come in
DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


class Spec(Protocol):
    """A checkpoint to be: tensors under keys of their own, and how the file spells them."""

    @property
    def seed(self) -> int:
        """Equal seeds give equal weights."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every tensor, in the order of the model's `state_dict`."""

    def name_of(self, key: str) -> str:
        """How the file spells a key."""

    def dtype_of(self, key: str) -> str:
        """The element type of the tensor with this key."""

    def is_norm(self, key: str) -> bool:
        """Whether the tensor with this key belongs to a normalisation layer."""

    def metadata(self) -> dict[str, str]:
        """What stands in the header of each file."""

    def config(self) -> Mapping[str, Any] | None:
        """The config.json of a model that is a folder; None for one that is a file."""


@dataclass(frozen=True, slots=True)
class SynthSpec:
    """A Wan checkpoint to be: geometry, spelling and element types of its tensors.

    `mixed` keeps norms and modulation in float32, as many repackaged files do. Raises ArgsError
    for a dtype, naming or prefix that no Wan checkpoint has.
    """

    geometry: WanGeometry
    dtype: str = "bfloat16"
    naming: Naming = "original"
    prefix: str = ""
    mixed: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ArgsError(f"Unknown dtype: {self.dtype!r}: use one of {', '.join(DTYPES)}")
        if self.naming not in ("original", "diffusers"):
            raise ArgsError(f"Unknown naming: {self.naming!r}: use original or diffusers")
        if self.prefix not in ("", *PREFIXES):
            raise ArgsError(f"Unknown prefix: {self.prefix!r}: use one of {', '.join(PREFIXES)}")

    def name_of(self, key: str) -> str:
        """How the file spells an original key."""
        return self.prefix + (to_diffusers_key(key) if self.naming == "diffusers" else key)

    def dtype_of(self, key: str) -> str:
        """The element type of the tensor with this original key."""
        return "float32" if self.mixed and stays_float32(key) else self.dtype

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Under original keys."""
        return tensor_names(self.geometry)

    def is_norm(self, key: str) -> bool:
        return is_norm(key)

    def metadata(self) -> dict[str, str]:
        """What shapes do not show, so that any geometry can be read back from its file."""
        return {"format": "pt", **all_statements(self.geometry)}

    def config(self) -> None:
        return None


def stays_float32(key: str) -> bool:
    """Whether mixed files keep the tensor with this original key in float32."""
    return is_norm(key) or key.endswith("modulation")


def is_norm(key: str) -> bool:
    """Whether the tensor with this original key belongs to a normalisation layer."""
    layer = key.rpartition(".")[0]
    return layer in ("img_emb.proj.0", "img_emb.proj.4") or layer.rpartition(".")[2].startswith(
        "norm"
    )
