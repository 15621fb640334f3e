"""`Family`: what pieces must know of one host's classes; layers that are known of any host."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from .visit import Piece

Lend = Callable[[torch.Tensor], torch.Tensor]  # the next block may write into this tensor
Take = Callable[[torch.Tensor], torch.Tensor]  # where the result in place of this tensor goes
Cut = Callable[[int], tuple[Piece, ...]]

# Layers that give each token its own result whatever is beside it, in the packages that have them.
LAYERS = frozenset(
    {
        *("Linear", "RMSNorm", "LayerNorm", "Identity", "Dropout", "GELU"),
        *("ModuleList", "ModuleDict", "ParameterDict", "Sequential"),
    }
)


@dataclass(frozen=True, slots=True)
class Small:
    """A small model of the same classes, which is run both ways before pieces are believed.

    `key` differs where the classes or their forwards do. Made and run under a seed.
    """

    key: tuple[Hashable, ...]
    make: Callable[[], torch.nn.Module]
    run: Callable[[Any], torch.Tensor]


class Family(ABC):
    """One host's classes: which blocks are known in pieces, and how they run so."""

    layers: frozenset[str] = LAYERS
    packed_weights: frozenset[str] = frozenset()  # classes of weights that layers make plain

    @abstractmethod
    def is_block(self, block: torch.nn.Module) -> bool:
        """Whether a block's class is one whose forward is known."""

    @abstractmethod
    def tokens(self, given: dict[str, Any]) -> int | None:
        """Tokens of a block's forward, from its arguments by name; None where they are unusual."""

    @abstractmethod
    def run_block(
        self, block: Any, given: dict[str, Any], pieces: tuple[Piece, ...], take: Take
    ) -> Any:
        """What the block's forward returns."""

    @abstractmethod
    def small(self, root: Any) -> Small | None:
        """What to try before this model runs in pieces; None where it is not known."""

    def why_part(self, name: str, module: torch.nn.Module) -> str | None:
        """Why a part of a block, of a known class, has to see all tokens together."""
        return None

    def why_call(self, block: Any, given: dict[str, Any]) -> str | None:
        """Why this one call of a block has to run whole."""
        return None

    def has_model(self, root: torch.nn.Module) -> bool:
        """Whether the forward of the whole model is known, and `run_model` stands in for it."""
        return False

    def model_tokens(self, root: Any, given: dict[str, Any]) -> int | None:
        """Tokens of a forward of the whole model; None where its arguments are unusual."""
        return None

    def run_model(self, root: Any, given: dict[str, Any], cut: Cut, lend: Lend) -> Any:
        """What the model's forward returns; blocks may write into what they are lent."""
        raise NotImplementedError  # only asked where `has_model` says so
