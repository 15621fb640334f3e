"""Block swap beside what else people put on a model: one owner per block, whoever comes next."""

import gc
from collections.abc import Iterator
from typing import Any

import comfy.hooks
import comfy.model_base
import comfy.model_management as management
import dynamic
import pytest
import simulated
import tiny
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

from blockswap.errors import ModelError
from blockswap.nodes.clone.holding import holding_of

STREAMED = {"blocks": "0,2-4"}


@pytest.fixture(autouse=True, params=["cpu", "sim"])
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    if request.param == "cpu":
        yield torch.device("cpu")
        return
    yield from simulated.on_simulated(request, monkeypatch)


def swapped(patcher: Any, **args: Any) -> Any:
    return tiny.swapped(patcher, **(args or STREAMED))


def shifted(patcher: Any, shift: float = 3.0) -> Any:
    return ModelSamplingSD3().patch(patcher, shift)[0]


def guided(patcher: Any) -> Any:
    return SkipLayerGuidanceDiT.execute(patcher, 3.0, 0.0, 1.0, double_layers="1,2").result[0]


def cached(patcher: Any) -> Any:
    return EasyCacheNode.execute(patcher, 0.5, 0.1, 0.95, False).result[0]


def compiled(patcher: Any) -> Any:
    """As the TorchCompileModel node does it, whose backends need a compiler for the device."""
    clone = patcher.clone()
    set_torch_compile_wrapper(model=clone, backend="eager")
    return clone


def compiled_blocks(patcher: Any) -> Any:
    """As packs do it that compile each block: compiled modules take the blocks' places."""
    clone = patcher.clone()
    for index, block in enumerate(patcher.model.diffusion_model.blocks):
        name = f"diffusion_model.blocks.{index}"
        inner = getattr(block, "_orig_mod", block)
        clone.add_object_patch(name, torch.compile(inner, backend="eager"))
    return clone


@pytest.mark.parametrize("other", [shifted, guided, cached, compiled, compiled_blocks])
def test_other_nodes_before_and_after(other: Any) -> None:
    plain = tiny.model("t2v")
    expected = tiny.sample(other(plain), steps=4)
    for model in (other(swapped(plain)), swapped(other(plain))):
        assert torch.equal(tiny.sample(model, steps=4), expected)
        assert torch.equal(tiny.sample(model, steps=4), expected)
    assert torch.equal(tiny.sample(other(plain), steps=4), expected)


def another_block(root: Any) -> Any:
    """A replacement that runs the block before in place of its own."""

    def call(given: Any, more: Any) -> Any:
        words = {"context": "txt", "e": "vec", "freqs": "pe", "transformer_options": None}
        named = {key: given[word or key] for key, word in words.items()}
        return {"img": root.blocks[2](given["img"], context_img_len=None, **named)}

    return call


def twice(_: Any) -> Any:
    def call(given: Any, more: Any) -> Any:
        return more["original_block"]({**given, **more["original_block"](given)})

    return call


@pytest.mark.parametrize("replacement", [another_block, twice])
def test_blocks_that_run_in_anothers_place_or_twice(replacement: Any) -> None:
    plain = tiny.model("t2v")

    def replaced(patcher: Any) -> Any:
        clone, call = patcher.clone(), replacement(patcher.model.diffusion_model)
        clone.set_model_patch_replace(call, "dit", "double_block", 3)
        clone.set_model_unet_function_wrapper(
            lambda apply, given: apply(given["input"], given["timestep"], **given["c"]) * 0.75
        )
        return clone

    expected = tiny.sample(replaced(plain))
    assert not torch.equal(expected, tiny.sample(plain))
    for asked in (
        {"blocks": "0,2-4"},
        {"blocks_to_swap": 5},
        {"blocks": "3", "chunk_tokens": 64},
    ):
        assert torch.equal(tiny.sample(replaced(swapped(plain, **asked))), expected), asked


def test_a_clone_with_the_same_wish_goes_on_with_what_is_there() -> None:
    plain = tiny.model("t2v")
    first, second = swapped(plain), shifted(swapped(plain))
    tiny.sample(first)
    holding = holding_of(plain.model)
    expected = tiny.sample(shifted(plain.clone()))
    assert holding_of(plain.model) is None
    tiny.sample(first)
    holding = holding_of(plain.model)
    assert torch.equal(tiny.sample(second), expected)
    assert holding_of(plain.model) is holding


def test_two_samplers_with_different_args_on_one_model() -> None:
    plain = tiny.model("t2v")
    expected = tiny.sample(plain)
    first, second = swapped(plain, blocks="0-2"), swapped(plain, blocks="3-5")
    for model in (first, second, first, plain, second):
        assert torch.equal(tiny.sample(model), expected)


def test_two_models_in_turn() -> None:
    plains = [tiny.model("t2v", seed=seed) for seed in (1, 2)]
    expected = [tiny.sample(plain) for plain in plains]
    models = [swapped(plain) for plain in plains]
    for _ in range(2):
        for model, wanted in zip(models, expected, strict=True):
            assert torch.equal(tiny.sample(model), wanted)


def test_after_an_interrupt_in_the_middle_of_a_step() -> None:
    plain = tiny.model("t2v")
    expected = tiny.sample(plain)
    model = swapped(plain)
    tiny.sample(model)
    block = plain.model.diffusion_model.blocks[3]
    handle = block.ffn[0].register_forward_pre_hook(
        lambda *_: management.interrupt_current_processing(True)
    )
    with pytest.raises(management.InterruptProcessingException):
        tiny.sample(model)
    handle.remove()
    assert torch.equal(tiny.sample(model), expected)
    assert torch.equal(tiny.sample(plain), expected)


def test_a_clone_that_is_gone_leaves_the_model_to_its_parent() -> None:
    plain = tiny.model("t2v")
    expected = tiny.sample(plain)
    model = swapped(plain)
    tiny.sample(model)
    assert holding_of(plain.model) is not None
    del model
    gc.collect()
    assert torch.equal(tiny.sample(plain), expected)
    assert holding_of(plain.model) is None


def test_a_model_that_is_dropped_gives_everything_back(
    request: pytest.FixtureRequest, device: torch.device
) -> None:
    plain = tiny.model("t2v")
    model = swapped(plain)
    tiny.sample(model)
    swap = holding_of(plain.model).swap
    del plain, model
    gc.collect()
    assert swap.closed


def test_ten_runs_with_changing_args_leave_memory_where_one_left_it(
    request: pytest.FixtureRequest, device: torch.device
) -> None:
    plain = tiny.model("t2v")
    expected = tiny.sample(plain)

    def left() -> tuple[int, ...]:
        management.unload_all_models()
        gc.collect()
        # By type: isinstance() would ask lazy modules of torch for their class.
        tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
        host = sum(storages.values())
        if device.type == "cpu":
            return (host,)
        counters = request.getfixturevalue("sim_module").counters()
        return host, counters.device_bytes, counters.pinned_bytes

    assert torch.equal(tiny.sample(swapped(plain, blocks="1-3")), expected)
    once = left()
    for run in range(10):
        args = [{"blocks": f"{run % 4}-5"}, {"blocks_to_swap": run % 6}, {}][run % 3]
        model = swapped(plain, **args)
        if run % 4 == 3:
            tiny.sample(tiny.with_lora(model, 0.1 * run))
        else:
            assert torch.equal(tiny.sample(model), expected)
        del model
    after = left()
    assert all(b <= a + 4096 for a, b in zip(once, after, strict=True)), (once, after)


def test_a_scheduled_lora() -> None:
    """Hooks write patched weights between two calls of the model, streamed or not."""
    plain = tiny.model("t2v")
    lora = tiny.lora_of(plain)

    def scheduled(patcher: Any) -> Any:
        hooks = comfy.hooks.create_hook_lora(lora, 0.8, 0)
        return tiny.sample(patcher, hooks=hooks)

    expected = scheduled(plain)
    assert not torch.equal(expected, tiny.sample(plain))
    model = swapped(plain)
    assert torch.equal(scheduled(model), expected)
    assert torch.equal(tiny.sample(model), tiny.sample(plain))


if not dynamic.HAS_DYNAMIC:

    def test_dynamic_vram_is_left_loudly(
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A stub of what newer cores offer, for older ones; test_dynamic has the real thing."""
        plain = tiny.model("t2v")
        cloned = type(plain).clone
        asked: list[Any] = []

        def clone(patcher: Any, disable_dynamic: bool = False, model_override: Any = None) -> Any:
            asked.append((disable_dynamic, model_override))
            return cloned(patcher)

        offered = {
            "clone": clone,
            "is_dynamic": lambda _: True,
            "cached_patcher_init": (),
            "get_clone_model_override": lambda _: "kept",
        }
        for name, stub in offered.items():
            monkeypatch.setattr(type(plain), name, stub, raising=False)
        vars(plain)["cached_patcher_init"] = ()
        swapped(plain)
        swapped(plain)
        assert asked == [(True, None), (True, "kept")]
        assert "is made without it" in caplog.text


def test_another_kind_of_model_is_refused_in_a_sentence() -> None:
    class Other:
        model = torch.nn.Linear(1, 1)

    with pytest.raises(ModelError, match="no diffusion model"):
        swapped(Other())
