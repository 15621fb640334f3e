"""Forecasts of published models and of files, on cards and on nothing known."""

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from blockswap import BlockSwapArgs, Workload, open_transformer
from blockswap.demo.weights import weights_path
from blockswap.errors import ArgsError, GeometryError, PlanError
from blockswap.forecast import Order, find_model, forecast, largest_clip, sweep
from blockswap.forecast.forecast import foresee, has_plan
from blockswap.forecast.sweep import limits
from blockswap.layout.geometry.variants import VARIANTS
from blockswap.plan.inputs.cards import find_card, machine_of_card
from blockswap.plan.inputs.machine import DiskFigures, Machine
from blockswap.predict import Companions
from blockswap.predict.subject import WanSubject, Wish
from blockswap.units import GIB, MIB, format_bytes_at_least

CLIP = Workload(832, 480, 17)
DISK = DiskFigures(2e9, 4, 8 * MIB, direct=True)


@pytest.fixture(scope="module")
def order() -> Order:
    """The 14B model on a card with 8 GiB."""
    machine = machine_of_card(find_card("RTX 4060"), disk=DISK)
    return Order(find_model("wan2.1-t2v-14b"), CLIP, machine, device_free_bytes=8 * GIB)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_assumed_of_a_clip_is_a_clip_that_the_model_takes(name: str) -> None:
    subject = WanSubject(VARIANTS[name])
    clip = subject.clip(Wish())
    usual = "1280x704, 121 frames" if "5b" in name else "1280x720, 81 frames"
    assert clip.words == usual
    assert subject.tokens(clip) == (27280 if "5b" in name else 75600)


def test_a_file_that_does_not_open_is_not_planned(tmp_path: Path) -> None:
    tensors = load_file(weights_path())
    key = "blocks.0.self_attn.q.weight"
    with safe_open(weights_path(), framework="pt") as file:
        save_file(tensors | {key: tensors[key].long()}, tmp_path / "a.safetensors", file.metadata())
    with pytest.raises(GeometryError, match="compute in floating point"):
        find_model(str(tmp_path / "a.safetensors"))


def test_figures_of_a_published_model() -> None:
    model = find_model("Wan2.1-T2V-14B")
    kinds = [unit.kind for unit in model.units]
    assert kinds.count("block") == 40
    assert kinds.count("text_embedder") == 1
    block = next(unit for unit in model.units if unit.kind == "block")
    assert block.resident_bytes == 702_788_608  # as `describe_module` packs diffusers' class
    assert model.dtype == "bfloat16"
    assert [unit.name for unit in model.layout.units] == [unit.name for unit in model.units]
    doubled = find_model("wan2.1-t2v-14b", "float32")
    assert next(u for u in doubled.units if u.kind == "block").resident_bytes > 1.9 * 702_788_608


def test_a_name_that_is_neither_a_file_nor_a_model() -> None:
    with pytest.raises(ArgsError, match="is not there"):
        find_model("models/wan.safetensors")
    with pytest.raises(ArgsError, match="did you mean"):
        find_model("wan2.1-t2v-41b")


def test_figures_of_a_file_are_what_an_opened_model_has() -> None:
    path = weights_path()
    model = find_model(str(path))
    opened = open_transformer(path, BlockSwapArgs(blocks_to_swap=5), device="cpu")
    plan = opened.blockswap.plan
    opened.blockswap.close()
    found = {unit.name: unit for unit in model.units}
    assert [unit.name for unit in plan.units] == [unit.name for unit in model.units]
    for unit in plan.units:
        mine = found[unit.name]
        sizes = {"resident": mine.resident_bytes, "disk": mine.disk_slab_bytes}
        assert unit.slab_bytes == sizes[unit.tier]
    assert plan.rest_bytes == model.rest_bytes
    assert model.path == path


def test_casting_a_file_needs_a_buffer_to_cast_into() -> None:
    model = find_model(str(weights_path()), "float16")
    plain = find_model(str(weights_path()))
    assert plain.dtype == "float16" or plain.units[1].decode_bytes == 0
    assert model.units[1].decode_bytes > 0


def test_a_forecast_adds_up(order: Order) -> None:
    told = forecast(order)
    plan = told.plan
    assert plan.peak_bytes is not None
    assert plan.timing is not None
    assert plan.peak_bytes + told.margin_bytes <= 8 * GIB * 9 // 10
    assert plan.activation_bytes == (
        told.generation.denoising.activation_bytes + told.generation.carried_bytes
    )
    names = [phase.name for phase in told.phases]
    assert names == ["text encoding", "denoising", "decoding"]
    assert told.phases[1].peak_bytes == plan.peak_bytes
    assert told.blocks_to_swap == sum(unit.tier != "resident" for unit in plan.units)
    assert any("text encoding needs" in said for said in told.warnings)


def test_the_forecast_can_be_drawn(order: Order) -> None:
    told = forecast(order)
    measured = told.foreseen()
    assert measured is not None
    assert len(measured.visits) == 2 * len(told.plan.units)
    span = measured.visits[-1].ended - measured.visits[0].arrived
    assert told.plan.timing is not None
    assert span <= 2 * told.plan.timing.step_seconds * (1 + 1e-9)


def test_without_a_machine_bytes_are_told_and_seconds_are_not(order: Order) -> None:
    told = forecast(replace(order, machine=None))
    assert told.plan.timing is None
    assert told.foreseen() is None
    assert told.plan.peak_bytes is not None


def test_an_unknown_rate_leaves_seconds_out(order: Order) -> None:
    told = forecast(replace(order, machine=Machine("cpu", on_host=True, flops=())))
    assert told.plan.timing is None
    assert told.margin_bytes == 0


def test_a_tiled_vae_needs_less(order: Order) -> None:
    whole = forecast(order).phases[-1].peak_bytes
    tiled = forecast(replace(order, companions=Companions(vae_tiled=True))).phases[-1].peak_bytes
    assert tiled < whole


def test_ram_is_used_where_the_disk_would_bind(order: Order) -> None:
    """Nothing asked, host memory known: RAM where reading would be late, else the file alone."""
    slow = replace(order.machine, disk=replace(DISK, bytes_per_second=0.2e9))  # type: ignore[type-var]
    fast = replace(order.machine, disk=replace(DISK, bytes_per_second=50e9))  # type: ignore[type-var]
    roomy = replace(order, host_free_bytes=64 * GIB)
    tiers = [
        {unit.tier for unit in forecast(replace(roomy, machine=machine)).plan.units}
        for machine in (slow, fast)
    ]
    assert tiers == [{"resident", "ram"}, {"resident", "disk"}]


def test_a_sweep_never_rises_and_never_exceeds(order: Order) -> None:
    points = sweep(order)
    assert len(points) == 65
    assert (points[0].budget_bytes, points[-1].budget_bytes) == limits(order, foresee(order))
    for point in points:
        assert point.peak_bytes <= point.budget_bytes
    seconds = [point.step_seconds for point in points]
    assert all(s is not None for s in seconds)
    assert all(b <= a * (1 + 1e-8) for a, b in zip(seconds, seconds[1:], strict=False))  # type: ignore[operator]
    assert points[-1].streamed == 0
    assert points[0].streamed >= 40


def test_the_least_budget_is_the_one_that_the_refusal_names(order: Order) -> None:
    least, _ = limits(order, foresee(order))
    under = replace(order, args=BlockSwapArgs(vram_budget=least - 1))
    with pytest.raises(PlanError, match=rf"at least {format_bytes_at_least(least)} on") as caught:
        forecast(under)
    assert caught.value.least_bytes == least
    assert "832x480, 17 frames" in str(caught.value)
    assert forecast(replace(order, args=BlockSwapArgs(vram_budget=least))).plan.slots == 1


def test_the_largest_clip_fits_and_the_next_one_does_not() -> None:
    clip = Workload(512, 320, 49)
    cpu = Machine("cpu", on_host=True, flops=())
    whole = Order(find_model(str(weights_path())), clip, cpu)
    least, _ = limits(whole, foresee(whole))
    long = replace(whole, args=BlockSwapArgs(vram_budget=least * 2 // 3))
    with pytest.raises(PlanError):
        forecast(long)
    found = largest_clip(long)
    assert found is not None
    assert has_plan(replace(long, workload=found), foresee(replace(long, workload=found)))
    longer = replace(long, workload=replace(found, frames=found.frames + 4))
    assert not has_plan(longer, foresee(longer))
    assert largest_clip(replace(long, args=BlockSwapArgs(vram_budget="1MiB"))) is None
