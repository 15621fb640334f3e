"""Formats: how the weights of a quantised checkpoint are packed, read off its names and shapes."""

from .unpack import quantiser_keys, unpacked

__all__ = ["quantiser_keys", "unpacked"]
