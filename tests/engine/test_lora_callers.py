"""Callers that skip blocks or parts of them, with a LoRA loaded beside a swapped model's weights.

With LoRAs that are merged: tests/formats/test_matrix.py.
"""

from contextlib import nullcontext

import pytest
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
from lora_samples import adapter, forward, reference, saved, spelled
from test_loras_merged import BF16, opened

from pairs import pairwise

STEPS = 6


def _pyramid(model):
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=3,
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(model, config)


SEER = TaylorSeerCacheConfig(
    cache_interval=3, disable_cache_before_step=1, cache_identifiers=[r"blocks\.\d+\.attn1"]
)
CALLERS = {
    "first block cache": lambda model: apply_first_block_cache(
        model, FirstBlockCacheConfig(threshold=100.0)
    ),
    "mag cache": lambda model: apply_mag_cache(
        model,
        MagCacheConfig(
            threshold=10.0, retention_ratio=0.2, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS
        ),
    ),
    "taylorseer": lambda model: apply_taylorseer_cache(
        model, SEER
    ),
    "pyramid attention": _pyramid,
    "layer skip": lambda model: apply_layer_skip(
        model,
        LayerSkipConfig(
            indices=[1], fqn="blocks", skip_attention=False, skip_attention_scores=False,
            skip_ff=True,
        ),
    ),
}  # fmt: skip
CASES = pairwise(
    device=("cpu", "sim-eager", "sim-lazy"), caller=tuple(CALLERS),
    passes=("one", "two"),
)  # fmt: skip


def outputs(model, device, passes, *, cached=True):
    """The steps of a clip; with two passes each step runs with and without the prompt, say.

    Not `cached`: no hook is there yet, and diffusers would keep a list of none.
    """
    found = []
    for step in range(STEPS):
        for context in ("cond", "uncond")[: 1 + (passes == "two")]:
            with model.cache_context(context) if cached else nullcontext():
                seed = 10 * step + len(context)
                found.append(forward(model, device, BF16, seed=seed))
    return found


@pytest.mark.parametrize(
    ("device", "case"),
    [(case["device"], case) for case in CASES],
    indirect=["device"],
    ids=lambda case: case if isinstance(case, str) else "-".join(map(str, case.values())),
)
def test_a_caller_that_skips(device, tmp_path, case):
    folder = saved(tmp_path / "model", BF16)
    own = adapter("lora", 3)
    whole = reference(folder, [], BF16).to(device)
    model = opened("disk", folder, BF16, device, None)
    tensors = {
        spelled(layer, end, "diffusers"): tensor
        for layer, ends in own.items()
        for end, tensor in ends.items()
    }
    for each in (whole, model):
        each.load_lora_adapter(dict(tensors), adapter_name="a", prefix="transformer")
        each.set_adapters(["a"], [0.5])
    whole.to(device)
    plain = outputs(whole, device, case["passes"], cached=False)
    for each in (whole, model):
        CALLERS[case["caller"]](each)
    want = outputs(whole, device, case["passes"])
    got = outputs(model, device, case["passes"])
    assert not all(map(torch.equal, want, plain)), "the caller skips nothing"
    assert [n for n, pair in enumerate(zip(want, got, strict=True)) if not torch.equal(*pair)] == []
    model.blockswap.close()
