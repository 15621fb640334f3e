"""The line on the node while the model runs."""

from typing import Any

from .holding import Holding


def show_status(patcher: Any, holding: Holding) -> None:
    """Placeholder."""
