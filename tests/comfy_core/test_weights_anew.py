"""On the simulated accelerator: whether what layers make is kept for all pieces, or made anew.

Kept it takes memory beside the activations; made anew it takes the time of each piece.
"""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.model_management as management
import pytest
import simulated
import tiny
import torch
from simulated import limit
from test_loader import saved
from test_made_once import Made, counting
from test_piece_size import Forward

from blockswap import BlockSwapArgs
from blockswap.nodes.clone.holding import holding_of
from blockswap.nodes.in_pieces import piece_size
from blockswap.nodes.loading import load_streamed
from blockswap.nodes.runs.wish import Wish
from blockswap.nodes.seams import host_wan

# Weights of some weight beside the activations. Of wider ones a CPU with AMX rounds products in
# bf16 by how many rows they have.
WIDE = 384
CLIP = (1, 9, 20, 20)  # 900 tokens
SMALL = (1, 1, 8, 8)  # too few tokens to be cut
BESIDE = 10 << 20  # what the sampler holds, and what the allocator loses between
ANEW = "weights are unpacked, cast and patched for each piece anew, for they do not fit beside it"
pytestmark = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)


@pytest.fixture(autouse=True)
def _on_sim(sim_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(tiny._COMMON, "dim", WIDE)
    monkeypatch.setitem(tiny._COMMON, "ffn_dim", WIDE)
    monkeypatch.setitem(tiny._COMMON, "num_heads", 3)
    yield from simulated.cutting_small(sim_device, monkeypatch)


class Clip:
    """Scaled fp8 with a LoRA, streamed from its file; what its forward needs, its latents whole."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        weights = tiny.fp8_scaled(tiny.state_dict("t2v", blocks=2))
        self._path = saved(folder, weights)
        model = self._model()
        forward = Forward(model, monkeypatch, CLIP)
        self.larger, self.kept = forward.predicted(256), forward.predicted(128)
        forward.keeps = False
        self.anew, self.whole = forward.predicted(128), forward.predicted(0)
        self.expected, self.made_whole = self.latents(model)
        management.unload_all_models()

    def _model(self, **args: Any) -> Any:
        wish = Wish(BlockSwapArgs(blocks="0-1", **args))
        return tiny.with_lora(load_streamed(self._path, wish), 0.6)

    def latents(self, model: Any) -> tuple[torch.Tensor, Made]:
        with counting() as made:
            return tiny.sample(model, clip=CLIP, steps=1), made

    def with_room(self, sim: ModuleType, request: pytest.FixtureRequest, room: int) -> Any:
        """A loaded clone that has `room` for activations, and its swap."""
        model = self._model()
        tiny.sample(model, steps=1, clip=SMALL)
        limit(sim, request, room)
        return model, holding_of(model.model).swap


@pytest.fixture
def clip(sim: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clip:
    return Clip(tmp_path, monkeypatch)


def test_kept_where_it_fits_beside_the_pieces_and_else_made_anew(
    clip: Clip,
    sim: ModuleType,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert clip.anew < clip.kept < clip.whole
    for room, size, keeps in (
        (clip.kept, 128, True), (clip.kept - 1, 256, False)
    ):  # fmt: skip
        model, swap = clip.with_room(sim, request, room + BESIDE)
        monkeypatch.setattr(piece_size.host, "free_bytes", lambda _, room=room: room)
        assert torch.equal(clip.latents(model)[0], clip.expected)
        latents, made = clip.latents(model)  # the first time a shell of the model was followed
        assert torch.equal(latents, clip.expected)
        assert swap.plan.chunk_tokens == size
        assert swap.pieces.loan.weights.allowed == keeps
        assert (made == clip.made_whole) == keeps
        text = swap.report().text()
        assert (ANEW in text) != keeps
        assert "ran out of memory" not in text
        # A clip that is not cut makes its weights once anyway.
        tiny.sample(model, steps=1, clip=SMALL)
        assert swap.pieces.loan.weights.allowed
        management.unload_all_models()


def test_out_of_memory_in_the_smallest_pieces_makes_weights_anew(
    clip: Clip, sim: ModuleType, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces become smaller first, which costs less; then nothing is kept; nothing leaves yet."""
    model, swap = clip.with_room(sim, request, 2 * clip.whole)
    monkeypatch.setattr(piece_size.host, "free_bytes", lambda _: clip.larger)
    assert torch.equal(clip.latents(model)[0], clip.expected)
    assert (swap.plan.chunk_tokens, swap.pieces.loan.weights.allowed) == (256, True)
    attend, left = host_wan.attend, iter(range(2))

    def lacking(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is not None:
            raise torch.OutOfMemoryError("as if there were none")
        return attend(*args, **kwargs)

    monkeypatch.setattr(host_wan, "attend", lacking)
    assert torch.equal(clip.latents(model)[0], clip.expected)
    assert not swap.closed, "nothing was loaded anew"
    text = swap.report().text()
    assert "in pieces of at most 128 tokens from now on, and it was run again" in text
    assert f"{ANEW}, and it was run again" in text
    again, more = clip.latents(model)
    assert torch.equal(again, clip.expected)
    assert more["calculate_weight"] > clip.made_whole["calculate_weight"]
