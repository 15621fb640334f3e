"""Pieces: the forward of a block for some tokens after others, so that a clip needs less memory."""

from .install import Pieces
from .onlookers import is_known
from .trial import why_never

__all__ = ["Pieces", "is_known", "why_never"]
