"""Who calls a model: plainly, with guidance, or through a cache that skips blocks or parts."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    LayerSkipConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    apply_first_block_cache,
    apply_layer_skip,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
    apply_taylorseer_cache,
)
from files import inputs

STEPS = 4


def _pyramid(model: Any) -> None:
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=3,
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(model, config)


def _magnitudes(model: Any) -> None:
    config = MagCacheConfig(
        threshold=10.0, retention_ratio=0.2, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS
    )
    apply_mag_cache(model, config)


def _taylor(model: Any) -> None:
    config = TaylorSeerCacheConfig(
        cache_interval=3, disable_cache_before_step=1, cache_identifiers=[r"blocks\.\d+\.attn1"]
    )
    apply_taylorseer_cache(model, config)


def _skip(model: Any) -> None:
    config = LayerSkipConfig(
        indices=[1], fqn="blocks", skip_attention=False, skip_attention_scores=False, skip_ff=True
    )
    apply_layer_skip(model, config)


def _first_block(model: Any) -> None:
    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=100.0))


# Hooks that skip; None: the model is called as it is.
CALLERS: dict[str, Callable[[Any], None] | None] = {
    "plain": None,
    "batch": None,
    "two passes": None,
    "first block cache": _first_block,
    "mag cache": _magnitudes,
    "pyramid attention": _pyramid,
    "taylorseer": _taylor,
    "layer skip": _skip,
}


def steps(
    model: Any, kind: str, device: torch.device, caller: str, count: int = STEPS, first: int = 0
) -> Iterator[torch.Tensor]:
    """Outputs of `count` steps of a clip, from step `first` on."""
    hooked = CALLERS[caller] is not None
    passes = ("cond", "uncond") if caller == "two passes" else ("cond",)
    for step in range(first, first + count):
        for name in passes:
            with model.cache_context(name) if hooked else nullcontext(), torch.no_grad():
                yield model(**_inputs(kind, device, caller, 7 * step + len(name)))[0].cpu()


def _inputs(kind: str, device: torch.device, caller: str, seed: int) -> dict[str, Any]:
    """One step's; of a batch both prompts go through one forward."""
    given = inputs(kind, device, seed=seed)
    if caller != "batch":
        return given
    other = inputs(kind, device, seed=seed + 1)
    return {
        name: torch.cat([value, other[name]]) if isinstance(value, torch.Tensor) else value
        for name, value in given.items()
    }
