"""diffusers' hooks that skip blocks or parts of them, by name; each is given a clip's steps."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

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


def _first_block(model: Any, steps: int) -> None:
    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=100.0))


def _magnitudes(model: Any, steps: int) -> None:
    config = MagCacheConfig(
        threshold=10.0, retention_ratio=0.2, num_inference_steps=steps, mag_ratios=[1.0] * steps
    )
    apply_mag_cache(model, config)


def _pyramid(model: Any, steps: int) -> None:
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=3,
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(model, config)


def _taylor(model: Any, steps: int) -> None:
    config = TaylorSeerCacheConfig(
        cache_interval=3, disable_cache_before_step=1, cache_identifiers=[r"blocks\.\d+\.attn1"]
    )
    apply_taylorseer_cache(model, config)


def _layers(model: Any, steps: int) -> None:
    config = LayerSkipConfig(
        indices=[1], fqn="blocks", skip_attention=False, skip_attention_scores=False, skip_ff=True
    )
    apply_layer_skip(model, config)


SKIPPING: dict[str, Callable[[Any, int], None]] = {
    "first block cache": _first_block,
    "mag cache": _magnitudes,
    "pyramid attention": _pyramid,
    "taylorseer": _taylor,
    "layer skip": _layers,
}


def clip(
    model: Any, run: Callable[[int], Any], *, steps: Iterable[int], passes: int, hooked: bool
) -> Iterator[Any]:
    """What `run(seed)` returns at each step, and again without the prompt, say, with two `passes`.

    Not `hooked`: no hook is there yet, and diffusers would keep a list of none.
    """
    for step in steps:
        for name in ("cond", "uncond")[:passes]:
            with model.cache_context(name) if hooked else nullcontext():
                yield run(7 * step + len(name))


def unhook(model: Any) -> None:
    """Takes off what the callers above hung on a model."""
    for module in model.modules():
        registry = vars(module).pop("_diffusers_hook", None)
        for name in reversed(registry._hook_order[:] if registry else ()):
            registry.remove_hook(name, recurse=False)
