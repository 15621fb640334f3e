"""A call is followed without data before it runs: nothing of that is left, not a random number."""

from typing import Any

import pytest
import torch
from tiny_families import built, made

from blockswap import swap_pipeline

eager = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)


class Keeping:
    """A processor with a state of its own, as attention processors and step caches have."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {"before": None, "steps": [0]}


class Noisy(torch.nn.Module):
    """Draws from three generators, and adds what it kept the last time."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(layers)])
        self.processor = Keeping()
        self.own = torch.Generator().manual_seed(5)

    def forward(self, x: torch.Tensor, generator: Any, cache: Keeping) -> torch.Tensor:
        for source in (None, self.own, generator):
            x = x + torch.randn(x.shape, generator=source).to(x.device)
        for block in self.blocks:
            x = block(x)
        for kept in (self.processor, cache):
            if kept.seen["before"] is not None:
                x = x + kept.seen["before"]
            kept.seen["before"] = x
            kept.seen["steps"][0] += 1
        return x


class Pipe:
    """As much of a pipeline as its models' turns need."""

    def __init__(self, layers: int = 3) -> None:
        self.transformer = Noisy(layers).requires_grad_(False)
        self.calls: list[str] = []
        self.transformer.blocks[0].register_forward_hook(self._hook)

    @property
    def components(self) -> dict[str, Any]:
        return {"transformer": self.transformer}

    def _hook(self, module: Any, given: Any, output: torch.Tensor) -> None:
        self.calls.append(output.device.type)

    @torch.no_grad()
    def __call__(self, device: torch.device) -> list[torch.Tensor]:
        torch.manual_seed(1)
        cache, generator = Keeping(), torch.Generator().manual_seed(7)
        shapes = ((2, 8), (2, 8), (1, 8))
        made = [self.transformer(torch.ones(s, device=device), generator, cache) for s in shapes]
        assert cache.seen["steps"] == [3]
        return [one.cpu() for one in made]


@eager
def test_what_a_forward_draws_keeps_and_tells(sim_device: torch.device) -> None:
    pipe = Pipe()
    pipe.transformer.to(sim_device)
    expected, device = pipe(sim_device), sim_device.type
    pipe = Pipe()
    with swap_pipeline(pipe, device=sim_device):
        found = pipe(sim_device)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert pipe.transformer.processor.seen["steps"] == [3]
    assert pipe.calls == [device] * 3, "a hook of a user's is called for what is computed"


def caches() -> dict[str, Any]:
    import diffusers as host

    return {
        "first block": host.FirstBlockCacheConfig(threshold=0.5),
        "magnitudes": host.MagCacheConfig(
            threshold=0.2, max_skip_steps=2, num_inference_steps=3, mag_ratios=[1.0] * 3
        ),
        "pyramid": host.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 2000),
            current_timestep_callback=lambda: 500,
        ),
    }


@eager
@pytest.mark.parametrize("name", ["first block", "magnitudes", "pyramid"])
def test_step_caches_of_diffusers(name: str, sim_device: torch.device) -> None:
    how = {"num_inference_steps": 3, "output_type": "latent"}
    pipe = built("ltx").to(sim_device)
    plain = made(pipe, "ltx", **how)
    pipe.transformer.enable_cache(caches()[name])
    expected = made(pipe, "ltx", **how)
    assert not torch.equal(expected, plain), "the cache does something"
    pipe = built("ltx")
    size = sum(weight.nbytes for weight in pipe.transformer.parameters())
    with swap_pipeline(pipe, device=sim_device, vram_budget=int(size * 0.8) + 2**21) as swap:
        pipe.transformer.enable_cache(caches()[name])
        assert torch.equal(made(pipe, "ltx", **how), expected)
        assert "streamed" in swap.report()


@eager
def test_many_small_weights_take_what_the_allocator_gives_them(sim_device: torch.device) -> None:
    """A bias of 32 bytes is 512 on the device: whole they are five times what they hold."""
    pipe = Pipe(layers=200)
    pipe.calls = []
    held = sum(weight.nbytes for weight in pipe.transformer.parameters())
    budget, before = held * 2, torch.accelerator.memory_allocated()
    torch.accelerator.reset_peak_memory_stats()
    with swap_pipeline(pipe, device=sim_device, vram_budget=budget) as swap:
        pipe(sim_device)
        assert torch.accelerator.max_memory_allocated() - before <= budget
        assert "streamed" in swap.report()


@eager
@pytest.mark.parametrize("made_so", [False, True], ids=["called", "made and called"])
def test_inference_mode(made_so: bool, sim_device: torch.device) -> None:
    """Tensors of that mode count no writes, and may be written to in it alone."""
    with torch.inference_mode(made_so):
        pipe = Pipe()
        pipe.transformer.register_buffer("count", torch.zeros(1))
        pipe.transformer.to(sim_device)
    expected = pipe(sim_device)
    with torch.inference_mode(made_so):
        pipe = Pipe()
        pipe.transformer.register_buffer("count", torch.zeros(1))
    with swap_pipeline(pipe, device=sim_device):
        with torch.inference_mode():
            found = pipe(sim_device)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert {tensor.device.type for tensor in pipe.transformer.state_dict().values()} == {"cpu"}
