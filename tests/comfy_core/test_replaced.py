"""What packs replace for all models at once, while one runs in pieces or before: never missed."""

from collections.abc import Callable
from typing import Any

import comfy.ldm.wan.model as wan
import comfy.model_management as management
import comfy.ops
import pytest
import tiny
import torch
from test_pieces import CLIP

from blockswap.nodes.clone.holding import holding_of

LAYERS = comfy.ops.disable_weight_init
PLACES: dict[str, tuple[Any, str]] = {
    "attention": (wan, "optimized_attention"),
    "rotary": (wan, "apply_rope1"),
    "gates": (wan, "repeat_e"),
    "layer": (LAYERS.Linear, "forward"),
    "norm": (LAYERS.RMSNorm, "forward"),
    "layer of torch": (torch.nn.Linear, "forward"),
    "activation": (torch.nn.GELU, "forward"),
    "product": (torch.nn.functional, "linear"),
    "sum": (torch, "addcmul"),
    "attention of torch": (torch.nn.functional, "scaled_dot_product_attention"),
}


def of_all_tokens(own: Callable[..., Any]) -> Callable[..., Any]:
    """Gives each token something of all others, as quantising by the largest value does."""

    def another(*args: Any, **kwargs: Any) -> Any:
        made = own(*args, **kwargs)
        return made * (1 + made.abs().amax() / 64)

    return another


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("what", PLACES)
def test_what_is_replaced_for_all_models(
    what: str, loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`loaded`: the model of the prompt before still is, with its blocks in pieces."""
    owner, name = PLACES[what]
    plain = tiny.model("t2v", blocks=2)
    model = tiny.swapped(plain, blocks="0-1", chunk_tokens=64)
    usual = tiny.sample(model, steps=1, clip=CLIP)
    if not loaded:
        management.unload_all_models()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, of_all_tokens(getattr(owner, name)))
        got = tiny.sample(model, steps=1, clip=CLIP)
        text = holding_of(plain.model).swap.report().text()
        expected = tiny.sample(plain, steps=1, clip=CLIP)
    assert torch.isfinite(expected).all()
    assert not torch.equal(expected, usual)
    assert torch.equal(got, expected)
    assert "run whole" in text or "runs whole" in text
    management.unload_all_models()
    assert torch.equal(tiny.sample(model, steps=1, clip=CLIP), usual)
    assert "run whole" not in holding_of(plain.model).swap.report().text()
