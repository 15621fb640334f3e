"""On the simulated accelerator: which clips the node cuts in pieces, and that they fit then."""

import gc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.ldm.wan.model as wan
import comfy.model_management as management
import comfy.ops
import gguf_packs
import pytest
import quantised
import simulated
import tiny
import torch
from simulated import limit
from test_loader import saved
from tiny import swapped

from blockswap import BlockSwapArgs
from blockswap.nodes.clone.holding import holding_of
from blockswap.nodes.in_pieces import piece_size
from blockswap.nodes.in_pieces.wan_pieces import WAN
from blockswap.nodes.loading import load_streamed
from blockswap.nodes.runs.wish import Wish
from blockswap.pieces import Pieces

CLIP = (1, 9, 20, 20)  # 900 tokens
pytestmark = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)


@pytest.fixture(autouse=True)
def _on_sim(sim_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from simulated.cutting_small(sim_device, monkeypatch)


class Forward:
    """One forward of a model's transformer as the sampler calls it, caught and run again."""

    keeps = True  # weights that layers make, for all pieces of a block

    def __init__(
        self, patcher: Any, monkeypatch: pytest.MonkeyPatch, clip: tuple[int, ...] = CLIP
    ) -> None:
        self.root = patcher.model.diffusion_model
        caught: list[Any] = []
        with monkeypatch.context() as patch:
            forward = type(self.root).forward
            patch.setattr(
                type(self.root),
                "forward",
                lambda root, *a, **k: (caught.append((a, k)), forward(root, *a, **k))[1],
            )
            tiny.sample(patcher, clip=clip, steps=1)
        (args, kwargs), *_ = caught
        self.given = args, {**kwargs, "transformer_options": {}}

    def predicted(self, tokens: int) -> int:
        return piece_size.Needs(self.root, WAN, self.given).of(tokens, keeps=self.keeps)

    def measured(self, tokens: int) -> int:
        """Bytes above all that is there before, inputs among it."""
        said: list[str] = []
        args, kwargs = self.given
        pieces = Pieces(self.root, tokens, said.append, family=WAN)
        pieces.loan.weights.allowed = self.keeps
        gc.collect()
        torch.accelerator.synchronize()
        before = torch.accelerator.memory_allocated()
        torch.accelerator.reset_peak_memory_stats()
        self.root(*args, **kwargs)
        torch.accelerator.synchronize()
        pieces.remove()
        assert not said
        return torch.accelerator.max_memory_allocated() - before


@pytest.mark.parametrize("family", ["t2v", "i2v", "ti2v-5b", "vace"])
def test_predicted_peak_is_the_measured_one(
    family: str, sim: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny.model(family)
    forward = Forward(plain, monkeypatch)
    peaks = []
    for tokens in (0, 256, 128):
        predicted, measured = forward.predicted(tokens), forward.measured(tokens)
        assert predicted == pytest.approx(measured, rel=0.01), tokens
        peaks.append(measured)
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > peaks[2] * 1.2


KINDS = {
    "fp8_scaled": lambda w: (quantised.fp8_scaled(w), None),
    "metadata": tiny.mixed_fp8,
}
WIDE = 512  # channels: weights of some weight beside the activations


@pytest.mark.parametrize(
    ("kind", "lora"), [("fp8_scaled", True), ("metadata", False), ("gguf", True)]
)
def test_weights_that_are_made_are_foreseen(
    kind: str, lora: bool, sim: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds: what a pack or a patch takes for a moment is not followed, but known."""
    monkeypatch.setitem(tiny._COMMON, "dim", WIDE)
    monkeypatch.setitem(tiny._COMMON, "ffn_dim", 2 * WIDE)
    monkeypatch.setitem(tiny._COMMON, "num_heads", 4)
    weights = tiny.state_dict("t2v", blocks=2)
    if kind == "gguf":
        gguf_packs.pack("stand-in")
        path = gguf_packs.written(tmp_path / "wan.gguf", weights)
    else:
        path = saved(tmp_path, *KINDS[kind](weights))
    model = load_streamed(path, Wish(BlockSwapArgs(blocks="")))
    if lora:
        model = tiny.with_lora(model, 0.6)
    forward, peaks = Forward(model, monkeypatch, (1, 9, 10, 10)), []
    for keeps in (True, False):
        forward.keeps = keeps
        predicted, measured = forward.predicted(128), forward.measured(128)
        assert measured <= predicted <= 1.6 * measured, keeps
        peaks.append((predicted, measured))
    assert peaks[0][0] > peaks[1][0]
    # Requantising outside the blocks is the first one's peak, either way.
    assert peaks[0][1] > peaks[1][1] or (kind, lora) == ("fp8_scaled", True)


@pytest.fixture
def clip(sim: ModuleType, monkeypatch: pytest.MonkeyPatch) -> "Clip":
    return Clip(monkeypatch)


class Clip:
    """A model, the latents that its host samples without us, and what a forward needs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plain = tiny.model("t2v")
        forward = Forward(self.plain, monkeypatch)
        self.needs = {tokens: forward.predicted(tokens) for tokens in (0, 256, 128)}
        self.expected = self.latents(self.plain)
        management.unload_all_models()

    def latents(self, model: Any) -> torch.Tensor:
        made: torch.Tensor = tiny.sample(model, clip=CLIP)
        return made

    def swap(self, sim: ModuleType, request: pytest.FixtureRequest, room: int, **args: Any) -> Any:
        """A loaded clone that has `room` for activations, and its swap."""
        model = swapped(self.plain, **args)
        tiny.sample(model)  # a clip too small to be cut
        limit(sim, request, room)
        return model, holding_of(self.plain.model).swap


def test_cut_where_the_whole_does_not_fit_in_what_is_free(
    clip: Clip, sim: ModuleType, request: pytest.FixtureRequest
) -> None:
    # The sampler's own tensors take some 3 MiB of it.
    model, swap = clip.swap(sim, request, clip.needs[0] + (1 << 20), blocks="0-5")
    assert torch.equal(clip.latents(model), clip.expected)
    assert swap.plan.chunk_tokens == 256
    text = swap.report().text()
    assert "blocks run in pieces of at most 256 tokens, which needs" in text
    assert "ran out of memory" not in text
    assert "in pieces of 256 tokens" in swap.status_line()
    tiny.sample(model)
    assert swap.plan.chunk_tokens is None, "the small clip runs whole again"
    assert torch.equal(clip.latents(model), clip.expected)
    assert swap.plan.chunk_tokens == 256


def test_whole_where_that_fits_or_was_asked(
    clip: Clip, sim: ModuleType, request: pytest.FixtureRequest
) -> None:
    model, swap = clip.swap(sim, request, clip.needs[0] * 2, blocks="0-5")
    assert torch.equal(clip.latents(model), clip.expected)
    assert swap.plan.chunk_tokens is None
    model, swap = clip.swap(sim, request, clip.needs[256], blocks="0-5", chunk_tokens=0)
    with pytest.raises(torch.OutOfMemoryError):
        clip.latents(model)
    assert swap.plan.chunk_tokens == 0


def test_out_of_memory_makes_pieces_smaller_before_anything_leaves(
    clip: Clip,
    sim: ModuleType,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(*_: Any, **__: Any) -> int:
        raise TypeError("nobody can tell")

    monkeypatch.setattr(piece_size.Needs, "of", unknown)
    model, swap = clip.swap(sim, request, clip.needs[0] + (1 << 20), blocks="0-3")
    stay = holding_of(clip.plain.model).plan.residents
    assert stay
    for _ in range(2):
        assert torch.equal(clip.latents(model), clip.expected)
        assert swap.plan.chunk_tokens == 256
    assert not swap.closed
    assert holding_of(clip.plain.model).plan.residents == stay
    text = swap.report().text()
    assert "what that needs cannot be foreseen (nobody can tell)" in text
    assert "ran out of memory" in text
    assert "tokens from now on, and it was run again" in text


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def needs_at_720p(kind: str, options: dict[str, Any], **more: Any) -> list[float]:
    """GiB of activations of the 14B at 1280x720, 81 frames: whole, pieces of 4,096 and of 2,048."""
    config = dict(dim=5120, ffn_dim=13824, num_heads=40, in_dim=16)
    if kind == "vace":
        config |= dict(num_layers=5, vace_layers=1, vace_in_dim=96)
        more |= {"vace_context": meta(1, 1, 96, 21, 90, 160), "vace_strength": [1.0]}
    else:
        config |= dict(num_layers=3)
    cls: Any = wan.VaceWanModel if kind == "vace" else wan.WanModel
    with torch.device("meta"):
        root = cls(
            model_type=kind,
            **config,
            operations=comfy.ops.disable_weight_init,
            dtype=torch.bfloat16,
            device="meta",
        )
    given = (meta(1, 16, 21, 90, 160), meta(1), meta(1, 512, 4096))
    needs = piece_size.Needs(root, WAN, (given, {**more, "transformer_options": options}))
    return [needs.of(tokens) / 2**30 for tokens in (0, 4096, 2048)]


def test_the_14b_at_720p(monkeypatch: pytest.MonkeyPatch) -> None:
    """README: what a forward of ComfyUI's own class needs at 1280x720, 81 frames."""
    monkeypatch.setattr(piece_size, "KERNELS", "cuda")
    whole, larger, smaller = needs_at_720p("t2v", {})
    assert 6.8 < whole < 7.4  # newer cores need a little less
    assert smaller < larger < 3.5


def test_the_14b_with_vace_at_720p(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the aim; what replaces a block reads its input afterwards, which is a state more."""
    monkeypatch.setattr(piece_size, "KERNELS", "cuda")
    _, larger, smaller = needs_at_720p("vace", {})
    assert smaller < larger < 3.5
    replaced = {"patches_replace": {"dit": {("double_block", 1): None}}}
    *_, watched = needs_at_720p("vace", replaced)
    assert 4.2 < watched < 4.8
