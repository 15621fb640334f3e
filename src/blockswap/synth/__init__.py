"""Synthesis: checkpoints with random weights in a model's true geometry, where no real ones are."""

from .write import Written, synth

__all__ = ["Written", "synth"]
