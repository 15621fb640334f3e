"""More Wan families, some of newer cores alone, and blocks that are run by their methods."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import quantised
import relatives
import simulated
import tiny
import torch
from safetensors.torch import save_file
from test_loader import opened
from tiny import swapped

from blockswap.nodes.clone.holding import holding_of
from blockswap.nodes.host_code.block_methods import methods_of

# An older core, in CI, tries one; a newer one, by hand, all of them.
NAMES = relatives.NAMES if quantised.PER_LAYER else ("s2v",)


@pytest.fixture(autouse=True)
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    yield from simulated.on_simulated(request, monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_latents_of_a_family(name: str, tmp_path: Path) -> None:
    weights, words = relatives.state_dict(name)
    path, given = str(tmp_path / "wan.safetensors"), relatives.given(name)
    save_file(weights, path, words)
    plain = tiny.loaded(weights, dict(words) if words else None)
    expected = tiny.sample(plain, steps=1, **given)
    assert torch.isfinite(expected).all()
    told = bool(given["conditioning"] or "image" in given)
    assert told != torch.equal(expected, tiny.sample(plain, steps=1, clip=relatives.CLIP))
    for model in (
        swapped(plain, blocks="0,2-4"),
        swapped(plain, blocks="0-5", offload_txt_emb=True, chunk_tokens=64),
        opened(path, blocks="0-5"),
    ):
        for _ in range(2):
            assert torch.equal(tiny.sample(model, steps=1, **given), expected)
        counters = holding_of(model.model).swap.measured().counters
        assert counters.copies > 0
    patched = tiny.sample(tiny.with_lora(plain, 0.01), steps=1, **given)
    assert torch.equal(tiny.sample(tiny.with_lora(model, 0.01), steps=1, **given), patched)


class ByMethods:
    """Makes a model's loop run each block by two of its methods, one after the other."""

    def __init__(self, model: Any, patch: pytest.MonkeyPatch) -> None:
        class Methodical(type(model.blocks[0])):  # type: ignore[misc]
            def normed(self, x: Any) -> Any:
                return self.norm1(x) * self.modulation[:, 0]

            def before(self, x: Any) -> Any:
                return self.normed(x)

            def all_of_it(self, x: Any, **given: Any) -> Any:
                return type(self).__mro__[1].forward(self, x + self.before(x), **given)

        for block in model.blocks:
            patch.setattr(block, "__class__", Methodical)
        self._model, self._forward = model, model.forward_orig
        patch.setattr(model, "forward_orig", self._run, raising=False)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        blocks = self._model._modules["blocks"]
        self._model._modules["blocks"] = [
            lambda x, block=block, **given: block.all_of_it(x, **given) + block.before(x)
            for block in blocks
        ]
        try:
            return self._forward(*args, **kwargs)
        finally:
            self._model._modules["blocks"] = blocks


@pytest.mark.parametrize("from_file", [False, True])
def test_blocks_that_are_run_by_their_methods(
    from_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Animate 2 of newer cores does: such a block is brought once for all of them."""
    weights, path = tiny.state_dict("t2v"), str(tmp_path / "wan.safetensors")
    save_file(weights, path)
    plain = tiny.loaded(weights)
    usual = tiny.sample(plain)
    ByMethods(plain.model.diffusion_model, monkeypatch)
    expected = tiny.sample(plain)
    assert not torch.equal(expected, usual)
    model = opened(path, blocks="0-5", ram_budget=0) if from_file else swapped(plain, blocks="1-4")
    if from_file:
        ByMethods(model.model.diffusion_model, monkeypatch)
    block = model.model.diffusion_model.blocks[3]
    assert methods_of(block) == ("all_of_it", "before", "normed")
    for _ in range(2):
        assert torch.equal(tiny.sample(model), expected)
    swap = holding_of(model.model).swap
    counters = swap.measured().counters
    assert counters.visits == counters.forwards * len(swap.plan.units)
    assert counters.copied_bytes > 0

    def fail(*_: Any) -> None:
        raise InterruptedError

    hook = block.ffn[0].register_forward_pre_hook(fail)
    with pytest.raises(InterruptedError):
        tiny.sample(model)
    hook.remove()
    assert torch.equal(tiny.sample(model), expected)
    comfy.model_management.unload_all_models()
    assert not {"all_of_it", "before", "normed"} & vars(block).keys()
    assert torch.equal(tiny.sample(plain), expected)
