"""Pieces: the forward of a block for some tokens after others, so that a clip needs less memory."""

from .diffusers_family import DIFFUSERS
from .family import LAYERS, Cut, Family, Loan, Small
from .install import Pieces
from .trial import why_never
from .visit import Keys, Piece, Visit, run, run_between

__all__ = [
    "DIFFUSERS",
    "LAYERS",
    "Cut",
    "Family",
    "Keys",
    "Loan",
    "Piece",
    "Pieces",
    "Small",
    "Visit",
    "run",
    "run_between",
    "why_never",
]
