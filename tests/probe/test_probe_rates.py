"""On the simulated accelerator, whose clock is exact, the probe finds the rates it was given."""

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from probe_samples import KIB, SMALL

from blockswap.probe import Figure, compute, probe
from blockswap.probe.link import link_figures
from blockswap.probe.timing import MOST_CALLS, ROUNDS, time_calls
from blockswap.stream.device import Accelerator, open_device

RATES: dict[str, Any] = {
    "flops": 1.25e11,
    "memory_gb_s": 40,
    "h2d_gb_s": 12.5,
    "d2h_gb_s": 7,
    "pageable_gb_s": 3,
}


@pytest.fixture(params=["eager", "lazy"])
def simulated(request: pytest.FixtureRequest, sim_module: ModuleType) -> Any:
    """`configure(**rates)`, with a mode: the simulated accelerator at those rates."""

    def configure(**rates: Any) -> None:
        sim_module.configure(mode=request.param, **rates)
        sim_module.reset()

    yield configure
    assert sim_module.races() == []
    sim_module.configure()
    sim_module.reset()


@pytest.mark.parametrize("launch_seconds", [0.0, 20e-6])
def test_rates_are_those_of_the_device(simulated: Any, launch_seconds: float) -> None:
    """Also where each launch costs the host time: the device is kept busy."""
    simulated(**RATES, launch_seconds=launch_seconds)
    machine = probe("sim", limits=SMALL).machine
    dtypes = ["bfloat16", "float16", "float32"]
    assert [dtype for dtype, _ in machine.flops] == dtypes
    assert [dtype for dtype, _ in machine.attention_flops] == dtypes
    for _, rate in (*machine.flops, *machine.attention_flops):
        assert rate == pytest.approx(1.25e11, rel=1e-6)
    assert machine.pinned_link == pytest.approx(12.5e9, rel=1e-6)
    # The host waits for each pageable copy, so it cannot hide the next launch behind it.
    copy_seconds = SMALL.copy_bytes / 3e9
    pageable = SMALL.copy_bytes / (copy_seconds + launch_seconds)
    assert machine.pageable_link == pytest.approx(pageable, rel=1e-6)


def test_the_way_back_and_device_memory_are_told_too(simulated: Any) -> None:
    simulated(**RATES)
    found = {figure.name: figure for figure in probe("sim", limits=SMALL).device.figures}
    assert found["link to host, pinned"].per_second == pytest.approx(7e9, rel=1e-6)
    assert found["link to host, pageable"].per_second == pytest.approx(3e9, rel=1e-6)
    assert found["device memory"].per_second == pytest.approx(40e9, rel=1e-6)
    assert found["device memory"].spread == pytest.approx(1, rel=1e-6)
    assert "of 256.0 KiB" in found["link to device, pinned"].how
    assert "[64, 256] x [256, 256]" in found["matmul bfloat16"].how


def test_the_machine_tells_sizes_and_times(simulated: Any, sim_module: ModuleType) -> None:
    simulated(**RATES, capacity=10**9)
    machine = probe("sim", limits=SMALL).machine
    assert (machine.name, machine.on_host, machine.device_bytes) == ("sim", False, 10**9)
    assert machine.disk is None
    assert machine.compute_seconds(2.5e11, "bfloat16") == pytest.approx(2, rel=1e-6)
    assert machine.copy_seconds(25 * 10**9) == pytest.approx(2, rel=1e-6)
    assert machine.copy_seconds(6 * 10**9, pinned=False) == pytest.approx(2, rel=1e-6)


def test_nothing_is_left_on_the_device_or_pinned(simulated: Any, sim_module: ModuleType) -> None:
    simulated(**RATES)
    before = sim_module.counters()
    probe("sim", limits=SMALL)
    after = sim_module.counters()
    assert after.device_bytes == before.device_bytes
    assert after.pinned_locked_bytes == before.pinned_locked_bytes
    # Weight, input and output; q, k, v and output; two halves of a copy within.
    assert after.device_bytes_peak - before.device_bytes <= 4 * SMALL.copy_bytes + 64 * KIB


@pytest.mark.parametrize(("flops", "tokens"), [(1e7, 16), (4e7, 32), (1e12, 64)])
def test_work_grows_as_long_as_it_fits_the_time(simulated: Any, flops: float, tokens: int) -> None:
    simulated(flops=flops)
    limits = replace(
        SMALL, compute_seconds=0.2, dtypes=("float32",), width=128, tokens=(16, 32, 64)
    )
    product = probe("sim", limits=limits).device.figures[0]
    assert product.how.startswith(f"[{tokens}, 128] x [128, 128]")
    assert product.per_second == pytest.approx(flops, rel=1e-6)


def test_pinned_memory_is_not_kept_in_torchs_cache(
    simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated(**RATES)
    emptied: list[bool] = []
    monkeypatch.setattr(Accelerator, "release_cached_host_memory", lambda _: emptied.append(True))
    probe("sim", limits=SMALL)
    assert emptied == [True]


def test_what_takes_no_time_is_no_figure(simulated: Any) -> None:
    simulated()  # computing and device memory are free by default
    found = probe("sim", limits=SMALL)
    assert found.machine.flops == ()
    assert found.machine.memory_rate is None
    assert found.machine.compute_seconds(1e9, "bfloat16") is None
    assert "matmul float32 was not measured: the device's clock saw no time pass" in found.sentences


def test_a_device_without_room_is_told_in_a_sentence(simulated: Any) -> None:
    simulated(**RATES, capacity=SMALL.copy_bytes // 2)
    found = probe("sim", limits=SMALL)
    assert found.machine.pinned_link is None
    assert found.machine.copy_seconds(1) is None
    assert any(s.startswith("the link was not measured: ") for s in found.sentences)
    assert any(s.startswith("device memory was not measured: ") for s in found.sentences)


def test_memory_that_cannot_be_pinned_leaves_the_pageable_link(simulated: Any) -> None:
    simulated(**RATES, pinned_capacity=SMALL.copy_bytes // 2)
    found = probe("sim", limits=SMALL)
    assert found.machine.pinned_link is None
    assert found.machine.pageable_link == pytest.approx(3e9, rel=1e-6)
    assert any("256.0 KiB cannot be pinned" in sentence for sentence in found.sentences)


def test_the_cpu_has_rates_and_no_link() -> None:
    found = probe("cpu", limits=SMALL)
    assert found.machine.on_host
    assert all(rate > 0 for _, rate in found.machine.flops)
    assert len(found.machine.flops) == 3
    assert (found.machine.pinned_link, found.machine.pageable_link) == (None, None)
    assert found.machine.copy_seconds(10**9) == 0
    assert "there is no link: blocks are used where they lie" in found.sentences
    assert list(link_figures(open_device("cpu"), SMALL)) == [found.sentences[0]]


def test_a_dtype_that_the_device_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.nn.functional.linear

    def lacking(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if inputs.dtype == torch.float16:
            raise RuntimeError("not implemented for 'Half'\nmore of it")
        return real(inputs, weight)

    monkeypatch.setattr(compute, "linear", lacking)
    found = probe("cpu", limits=SMALL)
    assert [dtype for dtype, _ in found.machine.flops] == ["bfloat16", "float32"]
    assert "matmul float16 was not measured: not implemented for 'Half'" in found.sentences


def test_rounds_that_differ_are_told() -> None:
    from blockswap.probe.measure import _noise

    quiet = Figure("matmul float32", 1e12, "FLOP", "", 1.2)
    loud = Figure("device memory", 1e12, "byte", "", 2.0)
    assert _noise((quiet,)) is None
    assert _noise(()) is None
    assert "rounds of device memory differed by a factor of 2.0" in str(_noise((quiet, loud)))


@pytest.mark.parametrize(
    ("cost", "budget", "rounds", "calls"),
    [
        (1e-3, 1.0, ROUNDS, MOST_CALLS),
        (0.09, 1.0, ROUNDS, 2),
        (0.3, 1.0, 3, 1),
        (0.9, 1.0, 1, 1),
        (5.0, 1.0, 1, 1),  # slower than the whole budget: it is still timed once
    ],
)
def test_slow_calls_are_timed_fewer_times(
    sim_module: ModuleType, cost: float, budget: float, rounds: int, calls: int
) -> None:
    sim_module.configure()
    sim_module.reset()
    device = open_device("sim")
    stream = device.current_stream()
    timing = time_calls(device, stream, lambda: sim_module.compute(cost), budget)
    assert (len(timing.rounds), timing.calls) == (rounds, calls)
    assert timing.seconds == pytest.approx(cost)
    assert timing.spread == pytest.approx(1)
    sim_module.reset()
