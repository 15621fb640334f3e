"""Forecasts: plans for models that are not loaded, on machines that need not be at hand."""

from .clip import largest_clip
from .figures import ModelFigures
from .find import find_model
from .forecast import Forecast, Order, forecast
from .sweep import Point, sweep
from .verdict import Verdict, host_bytes, host_parts, verdict_of

__all__ = [
    "Forecast",
    "ModelFigures",
    "Order",
    "Point",
    "Verdict",
    "find_model",
    "forecast",
    "host_bytes",
    "host_parts",
    "largest_clip",
    "sweep",
    "verdict_of",
]
