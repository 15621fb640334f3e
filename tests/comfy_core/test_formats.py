"""Quantised files through the loader: the bits of ComfyUI's own loading, or a refusal by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quantised
import tiny
import torch
from safetensors.torch import save_file
from test_loader import opened, saved

from blockswap.errors import ModelError
from blockswap.nodes.clone.holding import holding_of
from blockswap.store.leaves import leaf_tensors

Made = tuple[dict[str, Any], dict[str, str] | None]
KINDS: dict[str, Callable[[dict[str, Any]], Made]] = {
    "fp8": lambda w: ({k: v.to(torch.float8_e4m3fn) for k, v in w.items()}, None),
    "fp8_scaled": lambda w: (quantised.fp8_scaled(w), None),
    "fp8_scaled_full": lambda w: (quantised.fp8_scaled(w, full=True), None),
    "fp8_scaled_inputs_of_1": lambda w: (quantised.fp8_scaled(w, inputs=1.0), None),
    "fp8_scaled_inputs": lambda w: (quantised.fp8_scaled(w, inputs=0.5), None),
    "metadata": tiny.mixed_fp8,
    **{
        name: lambda w, name=name: (quantised.comfy_quant(w, (name,)), None)
        for name in quantised.FORMATS
    },
}
if quantised.PER_LAYER:
    KINDS["mixed"] = lambda w: (quantised.comfy_quant(w, quantised.FORMATS), None)
    KINDS["full_precision"] = lambda w: (
        quantised.comfy_quant(w, ("float8_e4m3fn",), full_precision_matrix_mult=True),
        None,
    )


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_of_the_hosts_own_loading(kind: str, prefix: str, tmp_path: Path) -> None:
    weights, words = KINDS[kind](tiny.state_dict("t2v"))
    plain = tiny.loaded(weights, dict(words) if words else None)
    expected = tiny.sample(plain)
    assert torch.isfinite(expected).all()
    path = saved(tmp_path, {prefix + key: value for key, value in weights.items()}, words)
    if kind == "metadata" and prefix:
        path = saved(tmp_path, weights, words)
    for args in ({}, {"blocks": "0,2-4", "ram_budget": 0}):
        model = opened(path, **args)
        assert torch.equal(tiny.sample(model), expected), args
        assert torch.equal(tiny.sample(model), expected), args
    assert holding_of(model.model).plan.read_bytes_per_forward > 0
    assert _block_bytes(model) <= _block_bytes(plain)


def _block_bytes(patcher: Any) -> int:
    """Bytes of what hangs in the blocks: the file's own, not a form of them that is larger."""
    blocks = patcher.model.diffusion_model.blocks
    leaves = [leaf for p in blocks.parameters() for _, leaf in leaf_tensors(p)]
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("fp8_scaled_full", "fp8")])
def test_with_a_lora_at_two_strengths(kind: str, tmp_path: Path) -> None:
    weights, words = KINDS[kind](tiny.state_dict("t2v"))
    plain = tiny.loaded(weights, dict(words) if words else None)
    model = opened(saved(tmp_path, weights, words), blocks="0-3")
    bare = tiny.sample(plain)
    for strength in (1.0, 0.4):
        expected = tiny.sample(tiny.with_lora(plain, strength))
        assert not torch.equal(expected, bare)
        assert torch.equal(tiny.sample(tiny.with_lora(model, strength)), expected)
    assert torch.equal(tiny.sample(model), bare)


@pytest.mark.parametrize(
    ("left", "named"),
    [
        ({"blocks.3.ffn.0.weight_smooth": torch.ones(4)}, "blocks.3.ffn.0.weight_smooth"),
        ({"blocks.0.self_attn.q.weight_scale": torch.ones(())}, "blocks.0.self_attn.q.weight_sc"),
        ({"some_adapter.weight": torch.ones(2, 2)}, "some_adapter.weight"),
    ],
)
def test_a_tensor_that_nothing_uses_is_an_error_by_name(
    left: dict[str, Any], named: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, tiny.state_dict("t2v") | left)
    with pytest.raises(ModelError, match=f"does not use, such as {named}"):
        opened(path)


def test_what_no_model_reads_is_no_error(tmp_path: Path) -> None:
    notes = {"step": torch.ones(()), "blockswap_padding.0": torch.zeros(16, dtype=torch.uint8)}
    weights = tiny.state_dict("t2v")
    model = opened(saved(tmp_path, weights | notes))
    assert torch.equal(tiny.sample(model), tiny.sample(tiny.loaded(weights)))


def test_a_file_without_a_weight_is_refused(tmp_path: Path) -> None:
    for weights in (tiny.state_dict("t2v"), KINDS["fp8_scaled"](tiny.state_dict("t2v"))[0]):
        del weights["blocks.2.ffn.0.weight"]
        with pytest.raises(ModelError, match=r"download it again|does not use"):
            opened(saved(tmp_path, weights))


def test_a_format_that_the_core_does_not_know_is_refused(tmp_path: Path) -> None:
    weights = tiny.state_dict("t2v")
    said = torch.tensor(list(b'{"format": "float3_of_tomorrow"}'), dtype=torch.uint8)
    weights["blocks.0.ffn.0.comfy_quant"] = said
    with pytest.raises(ModelError, match="update ComfyUI"):
        opened(saved(tmp_path, weights))


def test_the_host_has_nothing_to_warn_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights, _ = KINDS["fp8_scaled"](tiny.state_dict("t2v"))
    save_file(weights, tmp_path / "wan.safetensors")
    caplog.clear()
    model = opened(str(tmp_path / "wan.safetensors"), blocks="0-3")
    tiny.sample(tiny.with_lora(model, 0.5))
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == []
