"""What a clip is, and that knowing it needs no torch."""

import subprocess
import sys

import pytest

from blockswap.errors import ArgsError
from blockswap.layout.geometry import find_variant
from blockswap.plan.inputs.workload import (
    ForwardCost,
    Workload,
    latent_size,
    token_count,
)

LARGE, TI2V = find_variant("wan2.1-t2v-14b"), find_variant("wan2.2-ti2v-5b")


def test_the_known_token_counts() -> None:
    assert token_count(LARGE, Workload(1280, 720, 81)) == 75600
    assert token_count(LARGE, Workload(832, 480, 81)) == 32760
    assert token_count(TI2V, Workload(1280, 704, 121)) == 27280
    assert latent_size(LARGE, Workload(1280, 720, 81)) == (21, 90, 160)
    assert latent_size(TI2V, Workload(1280, 704, 121)) == (31, 44, 80)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 1270}, ("width=1270", "multiple of 16", "1264 or 1280")),
        ({"height": 8}, ("height=8", "use 16")),
        ({"frames": 80}, ("frames=80", "4k+1", "77 or 81")),
        ({"frames": 4}, ("frames=4", "1 or 5")),
        ({"frames": 0}, ("frames=0", "positive")),
        ({"batch": True}, ("batch=True", "positive whole number")),
        ({"text_tokens": 1.5}, ("text_tokens=1.5",)),
        ({"dtype": "fp8"}, ("dtype='fp8'", "bfloat16")),
        ({"attention": "sage"}, ("attention='sage'", "flash, math")),
        ({"kernels": "rocm"}, ("kernels='rocm'", "cuda, portable")),
    ],
)
def test_refusals(change: dict, words: tuple[str, ...]) -> None:
    with pytest.raises(ArgsError) as refused:
        Workload(**({"width": 1280, "height": 720, "frames": 81} | change))
    assert all(word in str(refused.value) for word in words), refused.value
    assert "\n" not in str(refused.value)


def test_the_coarser_vae_wants_coarser_sizes() -> None:
    with pytest.raises(ArgsError, match="height=720 is no multiple of 32: use 704 or 736"):
        latent_size(TI2V, Workload(1280, 720, 121))


def test_flops_are_summed() -> None:
    cost = ForwardCost(1, 1, 1, (("blocks.0", 3), ("blocks.1", 4)), rest_flops=5)
    assert cost.flops == 12
    assert cost.flops_by_unit == {"blocks.0": 3, "blocks.1": 4}


def test_no_torch_to_know_it() -> None:
    """Nor for the room of predictions itself: what is kept on disk is told without it."""
    code = (
        "import sys, blockswap.plan.inputs.workload, blockswap.predict as p; "
        "p.predict_text_encoder(); "
        "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
