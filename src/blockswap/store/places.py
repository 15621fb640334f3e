"""Where a tensor hangs in a model: a name among a module's parameters or buffers."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Place:
    """One name in one module: `module._parameters[name]` or `module._buffers[name]`."""

    module: torch.nn.Module
    name: str
    is_parameter: bool
    label: str  # full dotted name, for messages

    @property
    def table(self) -> dict[str, Any]:
        """The module's own dictionary in which the tensor hangs."""
        return self.module._parameters if self.is_parameter else self.module._buffers
