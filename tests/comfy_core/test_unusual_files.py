"""Files with unusual contents: the latents of the host's own loading, or a refusal; nothing else.

What the host loads, the loader streams to the same bits or refuses in one sentence; what the host
does not load, the loader does not either. The swap node behind the host's loading is its equal.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import quantised
import tiny
import torch
from test_loader import opened, saved
from tiny import swapped

from blockswap.errors import BlockSwapError

Weights = dict[str, torch.Tensor]
LINEAR = "blocks.2.ffn.0"
E4, E5 = torch.float8_e4m3fn, torch.float8_e5m2


def scaled(
    dtype: torch.dtype = E4, shape: str = "number", words: tuple[str, int] = ("scaled_fp8", 0)
) -> Weights:
    """A scaled fp8 checkpoint; `shape` of its scales, and the marker's elements."""
    made: Weights = {words[0]: torch.empty(words[1], dtype=dtype)}
    for key, value in tiny.state_dict("t2v").items():
        if not tiny.is_linear_of_a_block(key, value):
            made[key] = value
            continue
        wide = value.float().abs()
        most = wide.amax(1, keepdim=True) if shape == "row" else wide.amax()
        scale = most / torch.finfo(dtype).max
        made[key] = (value.float() / scale).to(dtype)
        of = {"number": (), "one": (1,), "row": scale.shape}[shape]
        made[key.replace(".weight", ".scale_weight")] = scale.reshape(of)
    return made


def without(weights: Weights, *endings: str) -> Weights:
    return {key: value for key, value in weights.items() if not key.endswith(endings)}


def plain_layer(weights: Weights) -> Weights:
    """One layer of a scaled file in bf16, as distillers leave some."""
    made = without(weights, f"{LINEAR}.scale_weight")
    return made | {f"{LINEAR}.weight": tiny.state_dict("t2v")[f"{LINEAR}.weight"]}


def bf16() -> Weights:
    return tiny.state_dict("t2v")


def fp8(dtype: torch.dtype, *, everything: bool = False) -> Weights:
    return {
        key: value.to(dtype) if everything or tiny.is_linear_of_a_block(key, value) else value
        for key, value in bf16().items()
    }


FILES: dict[str, Callable[[], Weights]] = {
    "e5m2 scaled": lambda: scaled(E5),
    "e5m2 scaled, full precision": lambda: scaled(E5, words=("scaled_fp8", 2)),
    "e5m2 in every tensor": lambda: fp8(E5, everything=True),
    "e5m2 linears": lambda: fp8(E5),
    "scales of one element": lambda: scaled(shape="one"),
    "scales of one element, full precision": lambda: scaled(shape="one", words=("scaled_fp8", 2)),
    "a scale a row": lambda: scaled(shape="row"),
    "a scale a row, full precision": lambda: scaled(shape="row", words=("scaled_fp8", 2)),
    "marker of another dtype": lambda: scaled() | {"scaled_fp8": torch.empty(0, dtype=E5)},
    "marker without scales": lambda: without(scaled(), ".scale_weight"),
    "scales without a marker": lambda: without(scaled(), "scaled_fp8"),
    "a layer in bf16": lambda: plain_layer(scaled()),
    "a layer in bf16, full precision": lambda: plain_layer(scaled(words=("scaled_fp8", 2))),
    "a layer without its scale": lambda: without(scaled(), f"{LINEAR}.scale_weight"),
    "scales in fp16": lambda: {
        k: v.half() if k.endswith("scale_weight") else v for k, v in scaled().items()
    },
    "scales in bf16": lambda: {
        k: v.bfloat16() if k.endswith("scale_weight") else v for k, v in scaled().items()
    },
    "a scale of nought": lambda: scaled() | {f"{LINEAR}.scale_weight": torch.zeros(())},
    "a scale that is no number": lambda: (
        scaled() | {f"{LINEAR}.scale_weight": torch.tensor(float("nan"))}
    ),
    "a scale beside a norm": lambda: (
        scaled() | {"blocks.2.self_attn.norm_q.scale_weight": torch.ones(())}
    ),
    "a scale of a layer outside": lambda: (
        scaled() | {"text_embedding.0.scale_weight": torch.ones(())}
    ),
    "both spellings of a scale": lambda: scaled() | {f"{LINEAR}.weight_scale": torch.ones(())},
    "input scales, some": lambda: scaled() | {f"{LINEAR}.scale_input": torch.tensor(0.25)},
    "input scales of one element": lambda: scaled() | {f"{LINEAR}.scale_input": torch.ones(1) / 4},
    "blocks without biases": lambda: without(bf16(), "ffn.0.bias"),
    "one bias left out": lambda: without(bf16(), f"{LINEAR}.bias"),
    "one norm left out": lambda: without(bf16(), "blocks.2.self_attn.norm_q.weight"),
    "a block left out": lambda: {k: v for k, v in bf16().items() if not k.startswith("blocks.3.")},
    "the last block left out": lambda: {
        k: v for k, v in bf16().items() if not k.startswith(f"blocks.{tiny.BLOCKS - 1}.")
    },
    "a bias too many": lambda: bf16() | {"blocks.2.self_attn.norm_q.bias": torch.ones(tiny.DIM)},
    "another shape": lambda: bf16() | {f"{LINEAR}.weight": torch.randn(256, 64)},
    "another bias": lambda: bf16() | {f"{LINEAR}.bias": torch.randn(255)},
    "a transposed weight": lambda: bf16() | {f"{LINEAR}.weight": torch.randn(128, 256)},
    "a weight of three dimensions": lambda: bf16() | {f"{LINEAR}.weight": torch.randn(256, 128, 1)},
    "a modulation without its first dimension": lambda: (
        bf16() | {"blocks.2.modulation": torch.randn(6, 128)}
    ),
    "fp64 in places": lambda: {
        k: v.double() if "blocks.2" in k or "head" in k else v for k, v in bf16().items()
    },
    "norms and modulations in fp32": lambda: {
        k: v.float() if v.ndim != 2 else v for k, v in bf16().items()
    },
    "half of the blocks in fp16": lambda: {
        k: v.half() if k.startswith(("blocks.1.", "blocks.4.")) else v for k, v in bf16().items()
    },
    "int8 without a word": lambda: (
        bf16() | {f"{LINEAR}.weight": torch.randint(-9, 9, (256, 128), dtype=torch.int8)}
    ),
    "an unknown prefix": lambda: {f"student.{k}": v for k, v in bf16().items()},
    "two prefixes": lambda: {
        ("model.diffusion_model." if "blocks.2." in k else "") + k: v for k, v in bf16().items()
    },
    "an empty tensor": lambda: bf16() | {f"{LINEAR}.weight": torch.empty(0)},
}
if quantised.PER_LAYER:
    word = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)

    def per_layer(**more: torch.Tensor) -> Weights:
        made = quantised.comfy_quant(bf16(), ("float8_e4m3fn",))
        return made | {key.replace("__", "."): value for key, value in more.items()}

    FILES |= {
        "layers of which some are quantised": lambda: (
            bf16() | {k: v for k, v in per_layer().items() if k.startswith("blocks.1.")}
        ),
        "a quantised layer without its scale": lambda: without(
            per_layer(), f"{LINEAR}.weight_scale"
        ),
        "a word without a quantised weight": lambda: bf16() | {f"{LINEAR}.comfy_quant": word},
        "a quantised weight without its word": lambda: without(
            per_layer(), f"{LINEAR}.comfy_quant"
        ),
        "a word that is no JSON": lambda: (
            per_layer() | {f"{LINEAR}.comfy_quant": torch.tensor(list(b"{fp8"), dtype=torch.uint8)}
        ),
        "a word of another format": lambda: (
            per_layer()
            | {f"{LINEAR}.comfy_quant": torch.tensor(list(b'{"format": "float8_e5m2"}')).byte()}
        ),
        "a scale of one element": lambda: (
            per_layer() | {f"{LINEAR}.weight_scale": torch.ones(1) / 448}
        ),
        "a scale in bf16": lambda: (
            per_layer() | {f"{LINEAR}.weight_scale": torch.tensor(1 / 448).bfloat16()}
        ),
        "an input scale": lambda: per_layer() | {f"{LINEAR}.input_scale": torch.tensor(0.25)},
        "a scale that no format has": lambda: (
            per_layer() | {f"{LINEAR}.weight_scale_2": torch.tensor(0.25)}
        ),
        "a bias in fp8": lambda: per_layer() | {f"{LINEAR}.bias": torch.zeros(256).to(E4)},
    }


# An older core, in CI, tries every third and one base; a newer one, by hand, all of them.
TRIED = list(FILES)[:: 1 if quantised.PER_LAYER else 3]
Outcome = torch.Tensor | Exception


def outcome(made: Callable[[], Any]) -> Outcome:
    """Latents, or the error of whoever found something wrong: the host's are of any kind."""
    try:
        latents: torch.Tensor = tiny.sample(made(), steps=1)
    except Exception as error:
        return error
    return latents


def check(ours: Outcome, theirs: Outcome, *, refusal: bool = True) -> None:
    """Equal, or refused by us in one sentence; what the host does not run is not run."""
    if isinstance(ours, torch.Tensor):
        assert isinstance(theirs, torch.Tensor), theirs
        assert torch.equal(torch.nan_to_num(ours, 7.0), torch.nan_to_num(theirs, 7.0))
    elif isinstance(theirs, torch.Tensor):
        assert refusal, ours
        assert isinstance(ours, BlockSwapError), ours
        assert "\n" not in str(ours)


@pytest.mark.parametrize("name", TRIED)
def test_equal_or_refused(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, {k: v.contiguous() for k, v in FILES[name]().items()})
    try:
        plain = comfy.sd.load_diffusion_model(path)
    except Exception as error:
        check(outcome(lambda: opened(path, blocks="0-2")), error)
        return
    theirs = outcome(lambda: plain)  # with what is left out as it happens to be
    check(outcome(lambda: opened(path, blocks="0-2")), theirs)
    check(outcome(lambda: swapped(plain, blocks="0-2")), theirs, refusal=False)


Patches = dict[Any, Any]


def _diff(key: str, *shape: int) -> Patches:
    draw = torch.Generator().manual_seed(len(key))
    return {f"diffusion_model.{key}": ("diff", (torch.randn(*shape, generator=draw) * 0.1,))}


def _pair(rows: int, columns: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    up = torch.randn(rows, 4, generator=draw) * 0.1
    return up, torch.randn(4, columns, generator=draw) * 0.1


def _adapter(kind: str) -> Patches:
    """One of the host's adapters on a linear, as its loading of a file makes it."""
    import comfy.weight_adapter as adapters

    key, (up, down) = f"diffusion_model.{LINEAR}.weight", _pair(256, 128)
    if kind in ("lora", "dora"):
        dora = torch.linspace(0.5, 1.5, 256)[:, None] if kind == "dora" else None
        return {key: adapters.LoRAAdapter(set(), (up, down, 4.0, None, dora, None))}
    if kind == "loha":
        more = _pair(256, 128, seed=2)
        return {key: adapters.LoHaAdapter(set(), (up, down, 4.0, *more, None, None, None))}
    one, two = _pair(16, 8)[0] @ _pair(16, 8)[1], _pair(16, 16)[0] @ _pair(16, 16)[1]
    return {key: adapters.LoKrAdapter(set(), (one, two, None, *([None] * 6)))}


PATCHES: dict[str, Callable[[], Patches]] = {
    "a modulation": lambda: _diff("blocks.2.modulation", 1, 6, tiny.DIM),
    "the head's modulation": lambda: _diff("head.modulation", 1, 2, tiny.DIM),
    "a bias alone": lambda: _diff(f"{LINEAR}.bias", 256),
    "a bias and its weight": lambda: {**_diff(f"{LINEAR}.bias", 256), **_adapter("lora")},
    "a norm": lambda: _diff("blocks.2.self_attn.norm_q.weight", tiny.DIM),
    "a norm with a bias": lambda: {
        **_diff("blocks.2.norm3.bias", tiny.DIM),
        **_diff("blocks.2.norm3.weight", tiny.DIM),
    },
    "the convolution": lambda: _diff("patch_embedding.weight", tiny.DIM, 16, 1, 2, 2),
    "a whole weight": lambda: {
        f"diffusion_model.{LINEAR}.weight": ("set", (_pair(256, 128)[0] @ _pair(256, 128)[1],))
    },
    "rows of a weight": lambda: {
        (f"diffusion_model.{LINEAR}.weight", (0, 32, 64)): (
            "diff",
            (_pair(64, 128)[0] @ _pair(64, 128)[1],),
        )
    },
    "a weight of another shape": lambda: _diff(f"{LINEAR}.weight", 64, 128),
    "a weight that is not there": lambda: _diff("blocks.2.ffn.9.weight", 256, 128),
    **{kind: lambda kind=kind: _adapter(kind) for kind in ("lora", "dora", "loha", "lokr")},
}
BASES = {
    "bf16": bf16,
    "e4m3 scaled": scaled,
    "e5m2 scaled": lambda: scaled(E5),
    "fp8": lambda: fp8(E4),
}
if quantised.PER_LAYER:
    BASES |= {
        name: lambda name=name: quantised.comfy_quant(bf16(), (name,))
        for name in ("float8_e4m3fn", "int8_tensorwise")
    }


@pytest.mark.parametrize("base", BASES if quantised.PER_LAYER else ["e4m3 scaled"])
def test_unusual_patches(base: str, tmp_path: Path) -> None:
    path = saved(tmp_path, BASES[base]())
    plain, file = comfy.sd.load_diffusion_model(path), opened(path, blocks="0-3")
    bare = tiny.sample(plain, steps=1)
    for number, made in enumerate(PATCHES.values()):
        how = {"strength_patch": -0.3, "strength_model": 0.9} if number % 2 else {}

        def patched(model: Any, made: Any = made, how: Any = how) -> Any:
            clone = model.clone()
            clone.add_patches(made(), **{"strength_patch": 0.7, **how})
            return clone

        theirs = outcome(lambda: patched(plain))
        check(outcome(lambda: patched(file)), theirs)
        check(outcome(lambda: swapped(patched(plain), blocks="0-3")), theirs)
    assert torch.equal(tiny.sample(file, steps=1), bare)
    assert torch.equal(tiny.sample(plain, steps=1), bare)
