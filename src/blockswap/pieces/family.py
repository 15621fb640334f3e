"""`Family`: what pieces must know of one host's classes; layers that are known of any host."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from ..adapters.families import WAN_LISTS, unit_modules
from .made_once import Keeping
from .visit import Piece

Cut = Callable[[int], tuple[Piece, ...]]
Compiler = Callable[[Any], Any]

# Layers that give each token its own result whatever is beside it, in the packages that have them.
LAYERS = frozenset(
    {
        *("Linear", "RMSNorm", "LayerNorm", "Identity", "Dropout", "GELU"),
        *("ModuleList", "ModuleDict", "ParameterDict", "Sequential"),
    }
)


class Loan:
    """Memory for the block that is called next: tensors that nobody else can hold, and room."""

    def __init__(self) -> None:
        self._lent: list[torch.Tensor] = []
        self.weights = Keeping()  # room for what the block's layers make

    def lend(self, tensor: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        """The first one, to be handed to the block; what was lent before is not any more."""
        self._lent = [tensor, *more]
        return tensor

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Where the block's result is to be written: the tensor itself if lent, or a new one.

        A lent one whose tokens do not lie one behind the other can only be spent.
        """
        if tensor.is_contiguous() and self._take(tensor):
            return tensor
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    def spend(self, tensor: torch.Tensor) -> None:
        """Gives the memory of a lent tensor back, whoever on the way to the block refers to it."""
        if self._take(tensor):
            tensor.set_()  # type: ignore[call-overload]

    def end(self) -> None:
        self._lent = []

    def _take(self, tensor: torch.Tensor) -> bool:
        kept = [lent for lent in self._lent if lent is not tensor]
        taken, self._lent = len(kept) < len(self._lent), kept
        return taken


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

    lists: tuple[str, ...] = WAN_LISTS  # where the blocks are that run in pieces
    layers: frozenset[str] = LAYERS
    packed_weights: frozenset[str] = frozenset()  # classes of weights that layers make plain
    model_forward: str = "forward"  # the method of a whole model that `run_model` stands in for

    def blocks(self, root: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """The blocks of a model that run in pieces where they can, by name."""
        units = unit_modules(root)
        return {u.name: u.module for u in units if u.name.rpartition(".")[0] in self.lists}

    @abstractmethod
    def is_block(self, block: torch.nn.Module) -> bool:
        """Whether a block's class is one whose forward is known."""

    @abstractmethod
    def tokens(self, given: dict[str, Any]) -> int | None:
        """Tokens of a block's forward, from its arguments by name; None where they are unusual."""

    @abstractmethod
    def run_block(
        self, block: Any, given: dict[str, Any], pieces: tuple[Piece, ...], loan: Loan
    ) -> Any:
        """What the block's forward returns."""

    def compiles(self, block: torch.nn.Module) -> bool:
        """Whether `run_compiled` runs such a block, which else runs whole once it is compiled."""
        return False

    def run_compiled(
        self, block: Any, given: dict[str, Any], pieces: tuple[Piece, ...], compiler: Compiler
    ) -> Any:
        """What the block's forward returns, in compiled pieces that write into nothing given."""
        raise AssertionError(f"{type(self).__name__} compiles no pieces: `compiles` says so")

    def why_another(self, root: torch.nn.Module) -> str | None:
        """Why a model's classes, by their names known, are not what was read of them."""
        return None

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

    def why_hosts_own(self, root: torch.nn.Module) -> str | None:
        """Said once where the host's forward of this model stays, and takes more memory."""
        return None

    def model_tokens(self, root: Any, given: dict[str, Any]) -> int | None:
        """Tokens of a forward of the whole model; None where its arguments are unusual."""
        return None

    def run_model(self, root: Any, given: dict[str, Any], cut: Cut, loan: Loan) -> Any:
        """What the model's forward returns; blocks may write into what it lends them."""
        raise AssertionError(f"{type(self).__name__} knows no whole model: `has_model` says so")
