"""Fixtures of pipelines whose models take turns."""

from device_limit import limit

__all__ = ["limit"]
