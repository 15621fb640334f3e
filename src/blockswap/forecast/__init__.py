"""Forecasts: plans for models that are not loaded, on machines that need not be at hand."""

from .clip import largest_clip
from .figures import ModelFigures, find_model
from .forecast import Forecast, Order, forecast
from .sweep import Point, sweep

__all__ = [
    "Forecast",
    "ModelFigures",
    "Order",
    "Point",
    "find_model",
    "forecast",
    "largest_clip",
    "sweep",
]
