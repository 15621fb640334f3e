"""Predicting: what a forward and a whole generation need, before anything is loaded.

Answers come from the cache, or from following a forward without data. Importing this room needs
no torch: only what has to be followed loads it.
"""

from typing import TYPE_CHECKING, Any

from .cache import cache_folder
from .generation import Companions, Generation, PhaseNeed, carried_bytes, predict_generation
from .phase import PhaseCost
from .text_encoder import predict_text_encoder
from .transformer import predict_forward, predict_in_pieces
from .vae import predict_vae, vae_of

if TYPE_CHECKING:
    from .module import predict_module

__all__ = [
    "Companions",
    "Generation",
    "PhaseCost",
    "PhaseNeed",
    "cache_folder",
    "carried_bytes",
    "predict_forward",
    "predict_generation",
    "predict_in_pieces",
    "predict_module",
    "predict_text_encoder",
    "predict_vae",
    "vae_of",
]


def __getattr__(name: str) -> Any:
    """`predict_module` is handed a module, so torch is there already when it is asked for."""
    if name == "predict_module":
        from .module import predict_module

        return predict_module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
