"""A call that differs from the one before, in the same turn of a model: it is looked at anew."""

from typing import Any, NamedTuple

import pytest
import torch

from blockswap import swap_pipeline

pytestmark = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
MIB = 2**20


class Answer(NamedTuple):
    state: torch.Tensor
    states: tuple[torch.Tensor, ...]


class Model(torch.nn.Module):
    """Six blocks of a quarter of a MiB; a call holds three times what it is given, and more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(256, 256) for _ in range(6))
        self.use_tiling = False

    def forward(self, x: torch.Tensor, *, tell: bool = False, how: str = "x") -> Any:
        states = [x]
        for block in self.blocks:
            states = [*states, block(states[-1])] if tell else [block(states[-1])]
        if how == "short":
            states[-1] = states[-1][:1]
        return Answer(states[-1], tuple(states)) if tell else states[-1]


class Decoder(Model):
    def enable_tiling(self) -> None:
        self.use_tiling = True

    def disable_tiling(self) -> None:
        self.use_tiling = False


class Pipe:
    def __init__(self, model: Model) -> None:
        self.transformer = model.requires_grad_(False)

    @property
    def components(self) -> dict[str, Any]:
        return {"transformer": self.transformer}

    @torch.no_grad()
    def __call__(self, device: torch.device, *calls: Any) -> list[torch.Tensor]:
        outs = []
        for x, given in calls:
            out = self.transformer(x.to(device), **given)
            outs.append(out.state if given.get("tell") else out)
        return outs


def weights() -> int:
    return sum(p.nbytes for p in Model().parameters())


def test_nothing_is_left_for_it_at_all(sim_device: torch.device) -> None:
    """All of the budget is held by weights and by what the caller has put there."""
    x = torch.randn(64, 256)
    expected = Pipe(Model())("cpu", (x, {}), (torch.cat([x] * 4), {}))
    pipe, budget = Pipe(Model()), 4 * MIB
    held: list[torch.Tensor] = []

    class Holding(Model):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            if not held and out.device.type == sim_device.type:  # until nothing is left
                used = torch.accelerator.memory_allocated() - before
                held.append(torch.empty(budget - used, dtype=torch.uint8, device=sim_device))
            return out

    pipe.transformer.__class__ = Holding
    before = torch.accelerator.memory_allocated()
    torch.accelerator.reset_peak_memory_stats()
    with swap_pipeline(pipe, device=sim_device, vram_budget=budget) as swap:
        outs = pipe(sim_device, (x, {}), (torch.cat([x] * 4), {}))
        assert "2 turns, streamed" in swap.report()
    assert torch.accelerator.max_memory_allocated() - before <= budget
    assert all(map(torch.equal, [out.cpu() for out in outs], expected))


def test_a_decoder_that_fits_whole_has_no_tiles(sim_device: torch.device) -> None:
    """Its weights, which are there already, do not count a second time."""
    x = torch.randn(64, 256)
    pipe = Pipe(Decoder())
    room = weights() + MIB
    with swap_pipeline(pipe, device=sim_device, vram_budget=room) as swap:
        pipe(sim_device, (x, {}), (torch.cat([x, x]), {}))
        assert not pipe.transformer.use_tiling, swap.report()
        assert "1 turns, whole" in swap.report()


@pytest.mark.parametrize("word", ["tell", "how"])
def test_a_word_makes_it_another_call(word: str, sim_device: torch.device) -> None:
    """Answers in a rehearsal are those of the call that was made, and so is what it needs."""
    x = torch.randn(64, 256)
    usual: dict[str, Any] = {"tell": False, "how": "x"}
    other = {**usual, "tell": True} if word == "tell" else {**usual, "how": "short"}
    pipe = Pipe(Model())
    with swap_pipeline(pipe, device=sim_device, vram_budget=64 * MIB) as swap:
        plan = swap.plan_call(sim_device, (x, usual), (x, other))
        assert plan.fits, plan
        first = swap.plan_call(sim_device, (x, usual))
        if word == "tell":
            assert plan.turns[0].device_bytes > first.turns[0].device_bytes + 2 * x.nbytes
        one, two = pipe(sim_device, (x, usual), (x, other))
        assert two.shape == (one[:1] if word == "how" else one).shape
