"""Pipelines that users built: models take turns, and make what they make when all are there."""

import gc
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_families import FAMILIES, built, made

from blockswap import swap_blocks, swap_pipeline
from blockswap.errors import ArgsError, ModelError, PlanError, StateError
from blockswap.turns import stage

eager = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
MIB = 2**20


def weights(pipe: Any) -> dict[str, int]:
    parts = {n: m for n, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    return {n: sum(t.nbytes for t in m.parameters()) for n, m in parts.items()}


def tensors_of(pipe: Any) -> dict[tuple[str, str], tuple[int, torch.Tensor]]:
    """Every parameter object, and a copy of its values."""
    return {
        (part, name): (id(tensor), tensor.detach().clone())
        for part, model in pipe.components.items()
        if isinstance(model, torch.nn.Module)
        for name, tensor in model.named_parameters()
    }


def peaks_by_turn(monkeypatch: pytest.MonkeyPatch, held: int) -> dict[str, int]:
    """The device's peak of each member above `held`, looked at when it leaves."""
    peaks: dict[str, int] = {}
    clear = stage.Stage.clear

    def looked_at(self: stage.Stage) -> None:
        name = "" if self._now is None else self._now.name
        torch.accelerator.synchronize()
        peaks[name] = max(peaks.get(name, 0), torch.accelerator.max_memory_allocated() - held)
        clear(self)
        torch.accelerator.reset_peak_memory_stats()

    monkeypatch.setattr(stage.Stage, "clear", looked_at)
    return peaks


def called_with(name: str, **changes: Any) -> tuple[tuple[str], dict[str, Any]]:
    """What `made` calls the pipeline with."""
    return ("a red ball",), {**FAMILIES[name].call, "output_type": "pt", **changes}


@eager
@pytest.mark.parametrize("name", FAMILIES)
def test_as_whole_on_a_device_that_holds_one_model_at_most(
    name: str,
    sim_device: torch.device,
    limit: Callable[[int | None], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = built(name)
    expected = made(pipe.to(sim_device), name)
    del pipe
    pipe = built(name)
    before, largest = tensors_of(pipe), max(weights(pipe).values())
    budget = largest * 3 // 4 + 2 * MIB
    limit(budget)
    held = torch.accelerator.memory_allocated()
    torch.accelerator.reset_peak_memory_stats()
    peaks = peaks_by_turn(monkeypatch, held)
    with swap_pipeline(pipe, device=sim_device, vram_budget=budget) as swap:
        asked, given = called_with(name)
        plan = swap.plan_call(*asked, **given)
        assert torch.accelerator.max_memory_allocated() == held, "nothing is loaded for a plan"
        assert torch.equal(made(pipe, name), expected)
        assert torch.equal(made(pipe, name), expected), "and again"
        assert plan.fits, plan.verdict
        said = swap.report()
        for turn in plan.turns:
            assert turn.how in next(x for x in said.splitlines() if x.startswith(f"{turn.name}:"))
        swap.close()
        for turn in plan.turns:
            # Qwen-Image keeps rope tables of 2 MiB on the device from its first forward on.
            kept = 2 * MIB if name == "qwen" and turn.name != "transformer" else 0
            assert turn.device_bytes == pytest.approx(peaks[turn.name] - kept, rel=0.03), turn
        assert max(peaks.values()) <= budget
        members = {line.split(":")[0]: line for line in swap.report().splitlines()}
        denoiser = next(m for n, m in members.items() if n.startswith("transformer"))
        assert "2 turns, streamed" in denoiser
        assert all("no turn" not in line for line in members.values())
    after = tensors_of(pipe)
    assert {k: v[0] for k, v in after.items()} == {k: v[0] for k, v in before.items()}
    assert all(torch.equal(after[key][1], before[key][1]) for key in before)
    assert type(pipe).__mro__[1].__name__ == "DiffusionPipeline"
    del pipe, swap  # schedulers and rope tables of its own keep a few tensors on the device
    gc.collect()
    torch.accelerator.synchronize()
    # Qwen-Image's rope keeps models alive in a cache of their methods, swapped or not.
    assert torch.accelerator.memory_allocated() <= held + (3 * MIB if name == "qwen" else 0)


@eager
def test_tiles_where_the_decoder_does_not_fit_whole(
    sim_device: torch.device, limit: Callable[[int | None], None]
) -> None:
    size = {"height": 64, "width": 64, "num_inference_steps": 1}
    pipe = built("wan")
    pipe.vae.enable_tiling(32, 32, 24, 24)
    expected = made(pipe.to(sim_device), "wan", **size)
    del pipe
    gc.collect()
    pipe = built("wan")
    pipe.vae.enable_tiling(32, 32, 24, 24)
    pipe.vae.disable_tiling()
    with swap_pipeline(pipe, device=sim_device, vram_budget=6 * MIB) as swap:
        asked, given = called_with("wan", **size)
        plan = swap.plan_call(*asked, **given)
        assert {turn.name: turn.how for turn in plan.turns}["vae"] == "in tiles"
        assert torch.equal(made(pipe, "wan", **size), expected)
        assert pipe.vae.use_tiling
        assert "in its own tiles" in swap.report()
    assert not pipe.vae.use_tiling, "as it came"
    for asked in (True, False):
        pipe.vae.use_tiling = not asked
        with swap_pipeline(pipe, device=sim_device, tiled=asked):
            assert pipe.vae.use_tiling is asked
        assert pipe.vae.use_tiling is not asked


def test_on_the_cpu_nothing_moves() -> None:
    pipe = built("ltx")
    expected = made(pipe, "ltx")
    with swap_pipeline(pipe, device="cpu", vram_budget="1GiB") as swap:
        assert torch.equal(made(pipe, "ltx"), expected)
        assert {row.how for row in swap.plan} == {"whole"}
        asked, given = called_with("ltx")
        plan, held = swap.plan_call(*asked, **given), sum(weights(pipe).values())
        assert plan.fits
        assert {(turn.how, turn.device_bytes) for turn in plan.turns} == {("whole", 0)}
        assert all(held < (turn.host_bytes or 0) < 2 * held for turn in plan.turns)
    with swap_pipeline(pipe, device="cpu", ram_budget=held + 1000) as swap:
        assert "of host memory are needed" in swap.plan_call(*asked, **given).verdict
    with pytest.raises(StateError, match="this swap is closed"):
        swap.plan_call(*asked, **given)


@eager
def test_a_plan_says_what_it_cannot_know(
    sim_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, (asked, given) = built("wan"), called_with("wan")
    state = torch.Generator().manual_seed(3)
    before, scheduler, told = state.get_state(), pipe.scheduler, dict(vars(pipe))
    with swap_pipeline(pipe, device=sim_device, vram_budget=MIB) as swap:
        small = swap.plan_call(*asked, **{**given, "generator": state})
        assert small.fits is False
        assert re.search(r"does not fit: .*vram_budget=", small.verdict)
        wrong = swap.plan_call(*asked, **{**given, "height": 33})
        assert wrong.fits is None
        assert "ended with ValueError: `height` and `width`" in wrong.verdict
    with swap_pipeline(pipe, device=sim_device, vram_budget=24 * MIB) as swap:
        follow, kinds = stage.follow_call, ("WanTransformer3DModel",)

        def follow_others(model: Any, *how: Any) -> Any:
            return None if type(model).__name__ in kinds else follow(model, *how)

        monkeypatch.setattr(stage, "follow_call", follow_others)
        partial = swap.plan_call(*asked, **given)
        assert partial.fits is None
        assert re.search(
            r"^not known of vae, transformer and transformer_2: .* asks for values.*, and before "
            r"it text_encoder needs",
            partial.verdict,
        )
    assert torch.equal(state.get_state(), before)
    assert pipe.scheduler is scheduler
    assert {k: v for k, v in vars(pipe).items() if k in told} == told


@eager
def test_other_ways_to_offload(sim_device: torch.device) -> None:
    pipe = built("ltx")
    expected = made(pipe.to(sim_device), "ltx")
    pipe = built("ltx")
    with swap_pipeline(pipe, device=sim_device, vram_budget=24 * MIB):
        pipe.enable_model_cpu_offload()  # one model at a time: so it is
        assert pipe.to(sim_device) is pipe
        assert torch.equal(made(pipe, "ltx"), expected)
        for call in (pipe.enable_sequential_cpu_offload, pipe.enable_group_offload):
            with pytest.raises(StateError, match="take turns"):
                call()
        with pytest.raises(StateError, match="was to be moved or cast"):
            pipe.to("cpu")
        with pytest.raises(StateError, match="was to be moved or cast"):
            pipe.to(torch.bfloat16)
        with pytest.raises(StateError, match="is swapped already"):
            swap_pipeline(pipe, device=sim_device)
    assert type(pipe.vae).__name__ == "AutoencoderKLLTXVideo"
    assert torch.equal(made(pipe.to(sim_device), "ltx"), expected), "as before"


@eager
def test_refusals(sim_device: torch.device) -> None:
    pipe = built("ltx")
    with pytest.raises(ArgsError, match="has no components"):
        swap_pipeline(pipe.transformer, device=sim_device)
    with pytest.raises(PlanError, match=r"ram_budget=1.0 MiB was asked, and the models"):
        swap_pipeline(pipe, device=sim_device, ram_budget="1MiB")
    swap = swap_blocks(pipe.transformer, {"blocks_to_swap": 2}, device=sim_device)
    with pytest.raises(StateError, match="of transformer are swapped already"):
        swap_pipeline(pipe, device=sim_device)
    plain, pipe.transformer = pipe.transformer, torch.compile(pipe.transformer)
    with pytest.raises(StateError, match="of transformer are swapped already"):
        swap_pipeline(pipe, device=sim_device)
    pipe.transformer = plain
    swap.close()
    part = torch.nn.Module()
    part.blocks = pipe.transformer.transformer_blocks
    with swap_blocks(part, {"blocks_to_swap": 2}, device=sim_device):
        with pytest.raises(StateError, match="shares blocks with a Module that is swapped already"):
            swap_pipeline(pipe, device=sim_device)
    pipe.vae.to(sim_device)
    with pytest.raises(ModelError, match=r"vae is on sim, and models wait in host memory"):
        swap_pipeline(pipe, device=sim_device)
    pipe.vae.to("cpu")
    with swap_pipeline(pipe, device=sim_device, vram_budget="1MiB") as small:
        assert {row.name: row.how for row in small.plan}["transformer"] == "streamed"
        with pytest.raises(PlanError, match="vram_budget="):
            made(pipe, "ltx")


@eager
def test_a_call_that_cannot_be_followed(
    sim_device: torch.device,
    limit: Callable[[int | None], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = built("wan")
    expected = made(pipe.to(sim_device), "wan")
    del pipe
    monkeypatch.setattr("blockswap.turns.stage.follow_call", lambda *_: None)
    pipe, budget = built("wan"), 10 * MIB
    limit(budget)
    with swap_pipeline(pipe, device=sim_device, vram_budget=budget) as swap:
        assert torch.equal(made(pipe, "wan"), expected)
        assert "text_encoder: 6.1 MiB, 2 turns, streamed" in swap.report()


@eager
def test_a_pipeline_that_is_swapped_once_more(
    sim_device: torch.device,
    limit: Callable[[int | None], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Qwen-Image's rope keeps tables of a first forward, on whatever device that was."""
    pipe = built("qwen")
    expected = made(pipe, "qwen")  # on the CPU, which keeps its own
    del pipe
    pipe, (asked, given), found = built("qwen"), called_with("qwen"), []
    budget = max(weights(pipe).values()) * 3 // 4 + 2 * MIB
    for _ in range(2):
        limit(budget)
        held = torch.accelerator.memory_allocated()
        torch.accelerator.reset_peak_memory_stats()
        with monkeypatch.context() as patched:
            peaks = peaks_by_turn(patched, held)
            with swap_pipeline(pipe, device=sim_device, vram_budget=budget) as swap:
                plan = swap.plan_call(*asked, **given)
                found.append(made(pipe, "qwen"))
        there = len(found) > 1  # the tables, which the plan counts once more
        turn = next(turn for turn in plan.turns if turn.name == "transformer")
        peak = peaks["transformer"] + there * 2 * MIB
        assert turn.device_bytes is not None
        assert peaks["transformer"] * 0.97 <= turn.device_bytes <= peak * 1.03
        assert max(peaks.values()) <= budget
        gc.collect()
    assert torch.equal(*found)
    assert torch.allclose(found[0], expected, atol=1e-4)
