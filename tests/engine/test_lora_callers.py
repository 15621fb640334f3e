"""Callers that skip blocks or parts of them, with a LoRA loaded beside a swapped model's weights.

With LoRAs that are merged: tests/formats/test_matrix.py.
"""

import pytest
import torch
from lora_samples import adapter, forward, reference, saved, spelled
from test_loras_merged import BF16, opened

from pairs import pairwise
from skipping import SKIPPING, clip

STEPS = 6
CASES = pairwise(
    device=("cpu", "sim-eager", "sim-lazy"), caller=tuple(SKIPPING),
    passes=(1, 2),
)  # fmt: skip


def outputs(model, device, passes, *, hooked=True):
    def run(seed):
        return forward(model, device, BF16, seed=seed)

    return list(clip(model, run, steps=range(STEPS), passes=passes, hooked=hooked))


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
    plain = outputs(whole, device, case["passes"], hooked=False)
    for each in (whole, model):
        SKIPPING[case["caller"]](each, STEPS)
    want = outputs(whole, device, case["passes"])
    got = outputs(model, device, case["passes"])
    assert not all(map(torch.equal, want, plain)), "the caller skips nothing"
    assert [n for n, pair in enumerate(zip(want, got, strict=True)) if not torch.equal(*pair)] == []
    model.blockswap.close()
