"""ComfyUI's Wan blocks in pieces of tokens: the whole's latents, or whole with a sentence."""

import functools
import inspect
import textwrap
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

from blockswap.nodes.clone.holding import holding_of
from blockswap.nodes.in_pieces.wan_pieces import WAN
from blockswap.pieces import Pieces, why_never

CLIP = (1, 5, 14, 14)  # 245 tokens


def clip_of(family: str) -> dict[str, Any]:
    """What is sampled: for I2V with an image, for 5B with a timestep for each frame."""
    made: dict[str, Any] = {"clip": CLIP}
    if family in ("i2v", "fun-control", "camera"):
        features = torch.randn(1, 257, 1280, generator=torch.Generator().manual_seed(4))
        made["image"] = SimpleNamespace(penultimate_hidden_states=features)
    if family == "ti2v-5b":
        made["noise_mask"] = torch.ones(CLIP[1:])[None, None]
        made["noise_mask"][:, :, 0] = 0
    return made


class Rows:
    """How many tokens at once each part of block 1 has seen, by its name."""

    def __init__(self, root: Any, patch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, list[int]] = {}
        names = {id(m): n for n, m in root.blocks[1].named_modules()}
        linear = type(root.blocks[1].ffn[2])
        call = linear.__call__

        def count(layer: Any, x: torch.Tensor) -> torch.Tensor:
            if id(layer) in names:
                self.seen.setdefault(names[id(layer)], []).append(x.shape[0] * x.shape[1])
            return call(layer, x)

        patch.setattr(linear, "__call__", count, raising=False)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_latents_in_pieces_are_the_wholes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, given = tiny.model(family), clip_of(family)
    root = plain.model.diffusion_model
    assert why_never(root, WAN) is None
    expected = tiny.sample(plain, **given)
    assert torch.isfinite(expected).all()
    said: list[str] = []
    pieces = Pieces(root, 64, said.append, family=WAN)
    with monkeypatch.context() as patch:
        rows = Rows(root, patch)
        assert torch.equal(tiny.sample(plain, **given), expected)
    pieces.remove()
    assert not said
    visits = len(rows.seen["cross_attn.k"])  # the text's keys: once a visit
    assert visits
    assert set(rows.seen["ffn.2"]) == {64, 117}
    assert sum(rows.seen["ffn.2"]) == sum(rows.seen["self_attn.k"])
    assert len(rows.seen["ffn.2"]) % visits == 0
    assert torch.equal(tiny.sample(plain, **given), expected)


def two_videos() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(2)

    def latents(channels: int) -> torch.Tensor:
        return torch.randn(1, channels, *CLIP[1:], generator=draw)

    frames, masks = [[latents(count) for _ in range(2)] for count in (32, 64)]
    return {"vace_frames": frames, "vace_mask": masks, "vace_strength": [0.5, 0.75]}


def forward_replaced_before(root: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(root, "forward_orig", functools.partial(root.forward_orig), raising=False)


def another_version(root: Any, patch: pytest.MonkeyPatch) -> None:
    own = type(root).forward_orig

    def newer(self: Any, x: Any, t: Any, context: Any, *args: Any, **given: Any) -> Any:
        return own(self, x, t, context, *args, **given) * 0.5

    patch.setattr(type(root), "forward_orig", newer)


TOUCHED = {
    None: "",
    forward_replaced_before: "of the model, its forward was replaced by other code before",
    another_version: "holds two states more than ours would",
}


@pytest.mark.parametrize("touch", TOUCHED)
def test_vace_with_two_videos_in_our_own_forward_and_in_anothers(
    touch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a forward that was read is ours; in any other, blocks write into nothing of it."""
    plain = tiny.model("vace")
    root = plain.model.diffusion_model
    with monkeypatch.context() as patch:
        if touch is not None:
            touch(root, patch)
        expected = tiny.sample(plain, clip=CLIP, conditioning=two_videos())
        assert not torch.equal(expected, tiny.sample(plain, clip=CLIP))
        said: list[str] = []
        pieces = Pieces(root, 64, said.append, family=WAN)
        assert torch.equal(tiny.sample(plain, clip=CLIP, conditioning=two_videos()), expected)
        assert ("forward_orig" in vars(root)) == (touch is not another_version)
        pieces.remove()
    assert len(said) == (touch is not None)
    assert "".join(said).endswith(TOUCHED[touch])
    assert "forward_orig" not in vars(root)


MODELS = {
    "plain": lambda: tiny.model("t2v"),
    "fp8_scaled": lambda: tiny.loaded(tiny.fp8_scaled(tiny.state_dict("t2v"))),
    "mixed": lambda: tiny.loaded(*tiny.mixed_fp8(tiny.state_dict("t2v"))),
}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_as_the_node_is_asked(kind: str, lora: bool) -> None:
    plain = MODELS[kind]()
    if lora:
        plain = tiny.with_lora(plain, 0.6)
    expected = tiny.sample(plain, clip=CLIP)
    model = tiny.swapped(plain, blocks="0,2-4", chunk_tokens=64)
    # Older cores' layers scale the weight or the input, whichever has fewer elements in the whole.
    assert torch.equal(tiny.sample(model, clip=CLIP), expected)
    swap = holding_of(plain.model).swap
    assert swap.plan.chunk_tokens == 64
    assert "in pieces of at most 64 tokens, as asked" in swap.report().text()
    assert not [s for s in swap.plan.sentences if "run whole" in s]
    assert torch.equal(tiny.sample(plain, clip=CLIP), expected)
    assert "forward" not in vars(plain.model.diffusion_model.blocks[0])


SIZES = {
    "batch of 2": (2, 5, 14, 14),
    "4 x 64 + 1": (1, 257, 2, 2),
    "33": (1, 33, 2, 2),  # fewer than a piece has at least: whole
}


@pytest.mark.parametrize("size", SIZES)
def test_odd_sizes(size: str) -> None:
    plain = tiny.model("t2v")
    expected = tiny.sample(plain, clip=SIZES[size])
    model = tiny.swapped(plain, blocks="0-3", chunk_tokens=64)
    assert torch.equal(tiny.sample(model, clip=SIZES[size]), expected)
    assert not [s for s in holding_of(plain.model).swap.plan.sentences if "run whole" in s]


def layers_skipped(model: Any) -> Any:
    return SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, double_layers="1,2").result[0]


def easy_cache(model: Any) -> Any:
    return EasyCacheNode.execute(model, 0.5, 0.0, 1.0, False).result[0]


def lazy_cache(model: Any) -> Any:
    return LazyCacheNode.execute(model, 0.5, 0.0, 1.0, False).result[0]


@pytest.mark.parametrize("node", [layers_skipped, easy_cache, lazy_cache], ids=lambda n: n.__name__)
def test_nodes_of_the_host_that_skip_and_reuse(node: Callable[[Any], Any]) -> None:
    plain = tiny.model("t2v")
    bare = tiny.sample(plain, clip=CLIP, steps=5)
    expected = tiny.sample(node(plain), clip=CLIP, steps=5)
    assert not torch.equal(expected, bare)
    model = node(tiny.swapped(plain, blocks="0-3", chunk_tokens=64))
    for _ in range(2):
        assert torch.equal(tiny.sample(model, clip=CLIP, steps=5), expected)
    swap = holding_of(plain.model).swap
    assert not [s for s in swap.plan.sentences if "run whole" in s]


class Seen:
    """What a `double_block` replacement is handed, and a copy: it must never be written into."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []
        self.copies: list[torch.Tensor] = []

    def __call__(self, given: Any, more: Any) -> Any:
        self.kept.append(given["img"])
        self.copies.append(given["img"].clone())
        out = more["original_block"](given)
        return {"img": out["img"] + 0.125 * given["img"]}


def skipped(given: Any, more: Any) -> Any:
    """Skip-layer guidance: the block is left out."""
    return given


REPLACED = {"reads its input": Seen, "skips": lambda: skipped}


@pytest.mark.parametrize("family", ["t2v", "vace"])
@pytest.mark.parametrize("what", REPLACED)
def test_block_replacements_of_other_nodes(family: str, what: str) -> None:
    plain = tiny.model(family)
    results = []
    for args in (None, {"blocks": "0-3", "chunk_tokens": 64}):
        call = REPLACED[what]()
        model = plain.clone() if args is None else tiny.swapped(plain, **args)
        model.set_model_patch_replace(call, "dit", "double_block", 1)
        results.append(tiny.sample(model, clip=CLIP))
        if what == "reads its input":
            assert call.kept
            assert all(map(torch.equal, call.kept, call.copies))
    assert torch.equal(*results)


@pytest.mark.parametrize("family", ["t2v", "vace"])
def test_patches_that_are_called_between_blocks(family: str) -> None:
    """Newer cores call them with what a block has made, which the block after it reads."""
    plain = tiny.model(family)
    results, calls = [], []
    for args in (None, {"blocks": "0-3", "chunk_tokens": 64}):
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []

        def keep(given: Any, kept: list[Any] = kept) -> Any:
            kept.append((given["img"], given["img"].clone()))
            return {"img": given["img"] * 1.5}

        model = plain.clone() if args is None else tiny.swapped(plain, **args)
        model.set_model_patch(keep, "double_block")
        results.append(tiny.sample(model, clip=CLIP))
        calls.append(len(kept))
        if family == "t2v":  # the host's VACE writes a hint into what a patch has returned
            assert all(torch.equal(tensor, before) for tensor, before in kept)
    assert torch.equal(*results)
    assert calls[0] == calls[1]
    text = inspect.getsource(type(plain.model.diffusion_model))
    assert bool(calls[0]) == ('"double_block" in patches' in text)


def overridden(patcher: Any) -> None:
    def attend(func: Any, *args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    patcher.model_options["transformer_options"]["optimized_attention_override"] = attend


def patched_inside(patcher: Any) -> None:
    patcher.set_model_patch(lambda given: given["x"], "attn1_patch")


def patched_part(patcher: Any) -> None:
    for number in range(tiny.BLOCKS):
        name = f"diffusion_model.blocks.{number}.cross_attn.forward"
        before = patcher.get_model_object(name)
        patcher.add_object_patch(name, lambda *args, f=before, **kwargs: f(*args, **kwargs) * 1.0)


def other_layer(patcher: Any) -> None:
    class Odd(type(patcher.model.diffusion_model.blocks[0].ffn[0])):  # type: ignore[misc]
        pass

    for block in patcher.model.diffusion_model.blocks:
        block.ffn[0].__class__ = Odd


WHOLE = {
    overridden: "its attention was replaced (overridden.<locals>.attend)",
    patched_inside: "a patch (attn1_patch) is called with all tokens of its attention",
    patched_part: "cross_attn was replaced by other code",
    other_layer: "its ffn.0 is a Odd, which may look at all tokens together",
}


@pytest.mark.parametrize("touch", WHOLE, ids=lambda touch: touch.__name__)
def test_what_others_do_inside_a_block_makes_it_run_whole(
    touch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny.model("t2v")
    other = plain.clone()
    touch(other)
    expected = tiny.sample(other, clip=CLIP)
    model = tiny.swapped(other, blocks="0-3", chunk_tokens=64)
    with monkeypatch.context() as patch:
        rows = Rows(plain.model.diffusion_model, patch)
        assert torch.equal(tiny.sample(model, clip=CLIP), expected)
    assert set(rows.seen["ffn.2"]) <= {245, 490}
    text = holding_of(plain.model).swap.report().text()
    assert WHOLE[touch] in text


def wrapped(kind: Any, name: str = "forward") -> Any:
    """As a pack puts its own in front, for every block of the class."""
    before = getattr(kind, name)

    @functools.wraps(before)
    def another(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = before(self, *args, **kwargs)
        return [part * 1.01 for part in made] if isinstance(made, tuple) else made * 1.01

    return another


def reworded(kind: Any) -> Any:
    """The text of its forward with another arithmetic of the same words."""
    text = inspect.getsource(kind.forward)
    assert "self.o(x)" in text
    names = dict(vars(inspect.getmodule(kind)))
    text = textwrap.dedent(text.replace("self.o(x)", "self.o(x + x)"))
    exec(compile(text, inspect.getfile(kind), "exec"), names)
    return names["forward"]


@pytest.mark.parametrize(
    ("another", "said"),
    [
        (wrapped, "comfy.ldm.wan.model.WanSelfAttention works with "),
        (reworded, "gave another result in pieces than whole"),
    ],
)
def test_a_class_whose_forward_is_another_one_runs_whole(
    another: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny.model("t2v").model.diffusion_model
    assert why_never(root, WAN) is None
    kind = type(root.blocks[0].self_attn)
    monkeypatch.setattr(kind, "forward", another(kind))
    why = why_never(root, WAN)
    assert why is not None
    assert said in why


def classes(root: Any) -> dict[str, Any]:
    """Whose forwards ours stand in for."""
    block = root.blocks[0]
    found = {"block": block, "self": block.self_attn, "cross": block.cross_attn}
    if hasattr(root, "vace_blocks"):
        found["vace block"] = root.vace_blocks[0]
    return {name: type(module) for name, module in found.items()}


@pytest.mark.parametrize(
    ("family", "which"),
    [
        *(("t2v", which) for which in ("block", "self", "cross")),
        *(("vace", which) for which in ("block", "self", "vace block", "model")),
    ],
)
def test_a_class_that_is_changed_while_a_model_runs_in_pieces(
    family: str, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packs do it when their node runs, and the model of the prompt before is still loaded."""
    plain = tiny.model(family)
    root = plain.model.diffusion_model
    before = tiny.sample(plain, clip=CLIP)
    model = tiny.swapped(plain, blocks="0-3", chunk_tokens=64)
    assert torch.equal(tiny.sample(model, clip=CLIP), before)
    kind, name = (type(root), "forward_orig") if which == "model" else (None, "forward")
    kind = kind or classes(root)[which]
    with monkeypatch.context() as patch:
        patch.setattr(kind, name, wrapped(kind, name))
        got = tiny.sample(model, clip=CLIP)
        text = holding_of(plain.model).swap.report().text()
        assert torch.equal(tiny.sample(plain, clip=CLIP), got)
    assert not torch.equal(got, before)
    assert f"the forward of {kind.__name__} was replaced by other code meanwhile" in text
    assert torch.equal(tiny.sample(model, clip=CLIP), before)
