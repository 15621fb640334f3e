"""Pieces: the forward of a block for some tokens after others, so that a clip needs less memory."""

import torch

from ..adapters.families import bare
from .diffusers_family import DIFFUSERS
from .family import LAYERS, Cut, Family, Loan, Small
from .install import Pieces
from .made_once import kept_in_visit, made_once
from .trial import why_never
from .vendor_family import VENDOR
from .visit import Keys, Piece, Visit, run, run_between

__all__ = [
    "DIFFUSERS",
    "LAYERS",
    "VENDOR",
    "Cut",
    "Family",
    "Keys",
    "Loan",
    "Piece",
    "Pieces",
    "Small",
    "Visit",
    "family_of",
    "kept_in_visit",
    "made_once",
    "run",
    "run_between",
    "why_never",
]


def family_of(model: torch.nn.Module) -> Family:
    """The family of a loaded model: Wan-Video's where it has blocks of its, else diffusers'."""
    vendors = any(map(VENDOR.is_block, bare(model).modules()))
    return VENDOR if vendors else DIFFUSERS
