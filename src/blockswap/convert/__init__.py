"""Conversion: a checkpoint rewritten for streaming, which every other program still opens."""

from .run import Converted, convert
from .verify import Verified, verify_pair

__all__ = ["Converted", "Verified", "convert", "verify_pair"]
