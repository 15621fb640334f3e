"""Turns: models of one pipeline, one after the other on the device, in the memory that is named."""

from .call_plan import CallPlan, TurnPlan
from .components_manager import BlockSwapStrategy
from .pipeline import ModelPlan, PipelineSwap, swap_pipeline

__all__ = [
    "BlockSwapStrategy",
    "CallPlan",
    "ModelPlan",
    "PipelineSwap",
    "TurnPlan",
    "swap_pipeline",
]
