"""What to synthesise of a model beside Wan's: the folder that diffusers opens, from its class."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..adapters.hosts.empty_models import empty_model
from ..errors import ArgsError
from ..published import Published
from .spec import DTYPES


@dataclass(frozen=True, slots=True)
class PublishedSpec:
    """A folder to be, under the class's own names; what the class keeps in fp32 stays so.

    `mixed` keeps norms in float32, too. Raises ArgsError for a dtype that no checkpoint has, and
    ModelError where diffusers is absent.
    """

    published: Published
    dtype: str = "bfloat16"
    mixed: bool = False
    seed: int = 0
    _tensors: Mapping[str, torch.Tensor] = field(init=False)
    _config: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ArgsError(f"Unknown dtype: {self.dtype!r}: use one of {', '.join(DTYPES)}")
        family = self.published.family
        model = empty_model(family.class_name, self.published.config, torch.bfloat16)
        object.__setattr__(self, "_tensors", model.state_dict())
        object.__setattr__(self, "_config", {"_class_name": family.class_name, **model.config})

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def name_of(self, key: str) -> str:
        return key

    def dtype_of(self, key: str) -> str:
        """Of whole numbers, and of what the class keeps in fp32, its own."""
        own = self._tensors[key].dtype
        if own != torch.bfloat16:
            return str(own).removeprefix("torch.")
        return "float32" if self.mixed and self.is_norm(key) else self.dtype

    def is_norm(self, key: str) -> bool:
        """A weight of one axis scales what it is multiplied with."""
        return self._tensors[key].dim() == 1 and key.endswith(".weight")

    def metadata(self) -> dict[str, str]:
        return {"format": "pt"}

    def config(self) -> Mapping[str, Any]:
        """As `from_config` takes it."""
        stated = {name: one for name, one in self._config.items() if name != "_name_or_path"}
        return dict(stated)
