"""In pieces a weight is unpacked, cast and patched as often as in the whole: once a block's run."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.ops
import gguf_packs
import pytest
import quantised
import tiny
import torch
from test_loader import saved

from blockswap import BlockSwapArgs
from blockswap.nodes.clone.holding import holding_of
from blockswap.nodes.loading import load_streamed
from blockswap.nodes.runs.wish import Wish
from blockswap.nodes.seams import host_wan
from blockswap.pieces.made_once import _End

CLIP = (1, 9, 8, 8)  # 144 tokens: two pieces of 64 and 80
GGUF = [("stand-in", "Q8_0")]
if gguf_packs.REAL:
    GGUF += [("real", kind) for kind in ("Q8_0", "Q4_0", "Q5_1")]


class Made(Counter[str]):
    """How often the host has made a weight, by how."""

    def watch(
        self, patch: pytest.MonkeyPatch, owner: Any, name: str, counts: Any = lambda *_, **__: True
    ) -> None:
        own = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if counts(*args, **kwargs):
                self[name] += 1
            return own(*args, **kwargs)

        patch.setattr(owner, name, counted)


def makes(layer: Any, given: Any = None, dtype: Any = None, **_: Any) -> bool:
    """Whether a call of the host's cast has anything to do."""
    functions = [*layer.weight_function, *layer.bias_function]
    return bool(functions) or layer.weight.dtype != (dtype or given.dtype)


@contextmanager
def counting(*more: tuple[Any, str]) -> Iterator[Made]:
    made = Made()
    with pytest.MonkeyPatch.context() as patch:
        made.watch(patch, comfy.lora, "calculate_weight")
        made.watch(patch, comfy.ops.QuantizedTensor, "dequantize")
        made.watch(patch, comfy.ops, "cast_bias_weight", makes)
        for place in more:
            made.watch(patch, *place)
        yield made


def in_pieces_as_whole(
    model_of: Callable[..., Any],
    expected: torch.Tensor,
    *more: tuple[Any, str],
    only: tuple[str, ...] = (),
) -> Made:
    """Samples whole, in pieces, and in pieces that make weights anew; what the whole has made."""
    counts = []
    for args, keeps in (({}, True), ({"chunk_tokens": 64}, True), ({"chunk_tokens": 64}, False)):
        model = model_of(**args)
        tiny.sample(model, steps=1)  # a small clip, to load it
        swap = holding_of(model.model).swap
        if args:
            swap.pieces.loan.weights.allowed = keeps
        with counting(*more) as made:
            latents = tiny.sample(model, steps=1, clip=CLIP)
        assert torch.equal(latents, expected)
        assert not [s for s in swap.plan.sentences if "run whole" in s]
        for module in model.model.diffusion_model.modules():
            assert "_call_impl" not in vars(module)
        counts.append(made)
    whole, once, anew = counts
    assert any(anew[name] > whole[name] for name in whole)
    for name in only or whole | once:
        assert once[name] == whole[name], name
    return whole


FILES: dict[str, Any] = {
    "cast": lambda w: (w, None),
    "fp8_scaled": lambda w: (quantised.fp8_scaled(w), None),
    "fp8_scaled_full": lambda w: (quantised.fp8_scaled(w, full=True), None),
    "metadata": tiny.mixed_fp8,
}
if quantised.PER_LAYER:
    FILES["full_precision"] = lambda w: (
        quantised.comfy_quant(w, ("float8_e4m3fn",), full_precision_matrix_mult=True),
        None,
    )


@pytest.mark.parametrize(
    ("kind", "lora"), [*((k, True) for k in FILES), ("cast", False), ("metadata", False)]
)
def test_of_a_file(kind: str, lora: bool, tmp_path: Path) -> None:
    weights, words = FILES[kind](tiny.state_dict("t2v", blocks=2))
    path = saved(tmp_path, weights, words)
    weight_dtype = "fp8_e4m3fn" if kind == "cast" else "default"

    def model(**args: Any) -> Any:
        loaded = load_streamed(path, Wish(BlockSwapArgs(blocks="0", **args)), weight_dtype)
        return tiny.with_lora(loaded, 0.6) if lora else loaded

    expected = tiny.sample(model(), steps=1, clip=CLIP)
    made = in_pieces_as_whole(model, expected)
    assert bool(made["calculate_weight"]) == lora
    assert made["cast_bias_weight"] + made["dequantize"] > 0


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("pack", "kind"), GGUF)
def test_of_a_gguf_behind_its_packs_loader(
    pack: str, kind: str, lora: bool, tmp_path: Path
) -> None:
    path = gguf_packs.written(tmp_path / "wan.gguf", tiny.state_dict("t2v", blocks=2), kind)
    found = gguf_packs.pack(pack)
    place = (found.GGMLOps.Linear, "get_weight") if pack == "real" else (found, "unpacked")
    plain = gguf_packs.loaded(pack, path)
    if lora:
        plain = tiny.with_lora(plain, 0.6)
    expected = tiny.sample(plain, steps=1, clip=CLIP)
    made = in_pieces_as_whole(lambda **a: tiny.swapped(plain, blocks="0", **a), expected, place)
    assert bool(made["calculate_weight"]) == lora
    assert made[place[1]] > 0


@pytest.mark.skipif(not quantised.PER_LAYER, reason="older cores have none of these layers")
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8_tensorwise", "mxfp8"])
def test_a_layer_that_multiplies_in_the_stored_form_is_patched_once(
    kind: str, tmp_path: Path
) -> None:
    """What it does with its input is its own; on a CPU its product unpacks the weight each time."""
    weights = quantised.comfy_quant(tiny.state_dict("t2v", blocks=2), (kind,))
    path = saved(tmp_path, weights)

    def model(**args: Any) -> Any:
        wish = Wish(BlockSwapArgs(blocks="0", **args))
        return tiny.with_lora(load_streamed(path, wish), 0.6)

    expected = tiny.sample(tiny.with_lora(tiny.loaded(weights), 0.6), steps=1, clip=CLIP)
    made = in_pieces_as_whole(model, expected, only=("calculate_weight",))
    assert made["calculate_weight"] > 0


@pytest.mark.parametrize("kind", ["fp8_scaled", "metadata"])
def test_nothing_is_left_of_it(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a run, and after one that ends in the middle of a block."""
    path = saved(tmp_path, *FILES[kind](tiny.state_dict("t2v", blocks=2)))
    model = load_streamed(path, Wish(BlockSwapArgs(blocks="0", chunk_tokens=64)))
    model = tiny.with_lora(model, 0.6)
    kept: list[weakref.ref[Any]] = []
    init = _End.__init__

    def note(end: Any, function: Any, rest: Any, named: Any) -> None:
        init(end, function, rest, named)
        kept.extend(weakref.ref(one) for one in rest if isinstance(one, torch.Tensor))

    monkeypatch.setattr(_End, "__init__", note)
    attend, left = host_wan.attend, iter(range(5))

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return attend(*args, **kwargs)

    expected = tiny.sample(model, steps=1, clip=CLIP)
    with monkeypatch.context() as patch:
        patch.setattr(host_wan, "attend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tiny.sample(model, steps=1, clip=CLIP)
    gc.collect()
    own = {id(p) for p in model.model.diffusion_model.parameters()}
    assert kept
    assert not [made for ref in kept if (made := ref()) is not None and id(made) not in own]
    for module in model.model.diffusion_model.modules():
        assert "_call_impl" not in vars(module)
    assert torch.equal(tiny.sample(model, steps=1, clip=CLIP), expected)
