"""Opening that fails in the middle leaves the model as it was, and nothing behind."""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from cases import Shelf, expect_refusal, forward, fresh, reference, skeleton
from test_restore import attributes_of, hooks_of, tensors_of
from torch import nn

from blockswap import BlockSwapArgs, open_transformer, swap_blocks
from blockswap.errors import CheckpointError, PlanError, ReadError
from blockswap.store.file_io import StreamedFile
from blockswap.store.ram import RamStore
from blockswap.stream import device as device_module
from blockswap.stream.device import Accelerator
from blockswap.stream.model.hooks import Hooks
from blockswap.stream.pool.pool import Pool

ARGS = {"blocks_to_swap": 4, "offload_txt_emb": True}
MOST = 40 if os.environ.get("BLOCKSWAP_EVERY_POINT") else 12  # calls of one kind that fail in turn


class Snapshot:
    """Everything of a model that must not have changed."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._tensors = {n: (t, t.detach().clone()) for n, t in tensors_of(model).items()}
        self._names = hooks_of(model), attributes_of(model)

    def check(self) -> None:
        assert (hooks_of(self._model), attributes_of(self._model)) == self._names
        for name, tensor in tensors_of(self._model).items():
            before, values = self._tensors[name]
            assert tensor is before, name
            assert torch.equal(tensor, values), name
            assert tensor.device.type == "cpu", name


class FailAt:
    """Lets `count` calls of a function pass, then raises."""

    def __init__(self, real: Callable[..., Any], count: int, error: BaseException) -> None:
        self._real, self._left, self._error = real, count, error
        self.raised = False

    def method(self) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                self.raised = True
                raise self._error
            return self._real(*args, **kwargs)

        return wrapper


STEPS: dict[str, tuple[type, str]] = {
    "allocating on the device": (Accelerator, "allocate"),
    "pinning": (Accelerator, "pin"),
    "re-homing a unit": (RamStore, "adopt"),
    "making the pool": (Pool, "__init__"),
    "connecting hooks": (Hooks, "connect"),
    "installing guards": (Hooks, "guard"),
    "making streams": (Accelerator, "new_stream"),
    "making events": (Accelerator, "new_event"),
}


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("step", STEPS)
def test_swap_blocks_that_fails_anywhere_leaves_the_model_as_it_was(
    step: str,
    kind: type[BaseException],
    sim_device: torch.device,
    sim: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner, name = STEPS[step]
    gc.collect()
    before = sim.counters()
    for count in range(MOST):
        model = fresh("mini")
        snapshot = Snapshot(model)
        with monkeypatch.context() as patch:
            fail = FailAt(getattr(owner, name), count, kind("full"))
            patch.setattr(owner, name, fail.method())
            try:
                swap_blocks(model, ARGS, device=sim_device).close()
            except kind:
                assert fail.raised
        snapshot.check()
        if not fail.raised:
            break
    else:
        assert step == "making events"  # there are hundreds: the first are enough
    assert count > 0
    del fail
    gc.collect()
    assert sim.counters().device_bytes == before.device_bytes
    assert sim.counters().pinned_bytes == before.pinned_bytes
    with swap_blocks(model, ARGS, device=sim_device), torch.no_grad():
        assert torch.equal(forward(model, "mini", sim_device), reference("mini", sim_device))


def test_opening_a_file_that_fails_anywhere_leaves_nothing_behind(
    device: torch.device, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = psutil.Process()
    files, threads = here.num_fds(), set(threading.enumerate())
    real = StreamedFile._read_once
    for count in range(100):
        fail = FailAt(real, count, OSError(5, "Input/output error"))
        with monkeypatch.context() as patch:
            patch.setattr(StreamedFile, "_read_once", fail.method())
            try:
                model = open_transformer(
                    shelf.file("mini"),
                    {"blocks_to_swap": 2},
                    device=device,
                    skeleton=skeleton("mini"),
                )
            except ReadError as error:
                assert "mini-fp32.safetensors" in str(error)
                assert "Input/output error" in str(error)
            else:
                model.blockswap.close()  # type: ignore[union-attr, operator]
        assert here.num_fds() == files
        assert set(threading.enumerate()) == threads
        if not fail.raised:
            break
    assert 3 < count < 100


@pytest.fixture
def copy_of_file(shelf: Shelf, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "wan.safetensors"
    path.write_bytes(shelf.file("diffusers").read_bytes())
    yield path


def test_truncated_file_is_refused_at_the_door(copy_of_file: Path, device: torch.device) -> None:
    os.truncate(copy_of_file, copy_of_file.stat().st_size - 1000)
    expect_refusal(
        lambda: open_transformer(copy_of_file, ARGS, device=device),
        CheckpointError,
        "wan.safetensors",
    )


def test_missing_file_and_folder_are_refused(tmp_path: Path, device: torch.device) -> None:
    for name in ("nothing.safetensors", "nowhere"):
        expect_refusal(
            lambda name=name: open_transformer(tmp_path / name, ARGS, device=device),
            CheckpointError,
            name,
        )


def test_budget_too_small_for_one_block_says_the_least_that_would_do(
    device: torch.device, shelf: Shelf
) -> None:
    model = skeleton("original")

    def tight() -> object:
        return open_transformer(
            shelf.file("original"),
            BlockSwapArgs(vram_budget=100_000),
            device=device,
            skeleton=model,
        )

    expect_refusal(tight, PlanError, "at least")
    with pytest.raises(PlanError) as caught:
        tight()
    least = caught.value.least_bytes
    opened = open_transformer(
        shelf.file("original"), BlockSwapArgs(vram_budget=least), device=device, skeleton=model
    )
    with torch.no_grad():
        assert torch.equal(forward(opened, "original", device), reference("original", device))
    opened.blockswap.close()  # type: ignore[union-attr, operator]
    with pytest.raises(PlanError):
        open_transformer(
            shelf.file("original"),
            BlockSwapArgs(vram_budget=least - 1),
            device=device,
            skeleton=skeleton("original"),
        )


def test_budget_too_small_leaves_a_loaded_model_as_it_was(
    sim_device: torch.device, sim: Any
) -> None:
    model = fresh("mini")
    snapshot = Snapshot(model)
    expect_refusal(
        lambda: swap_blocks(model, {"vram_budget": 1000}, device=sim_device), PlanError, "at least"
    )
    snapshot.check()


def test_pinning_that_fails_is_said_and_staged(
    sim_device: torch.device, sim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = Accelerator.pin
    calls: list[int] = []

    def reluctant(self: Accelerator, nbytes: int) -> torch.Tensor | None:
        calls.append(nbytes)
        return pin(self, nbytes) if len(calls) > 2 else None  # the first two fail

    monkeypatch.setattr(Accelerator, "pin", reluctant)
    model = fresh("mini")
    with swap_blocks(model, ARGS, device=sim_device) as swap, torch.no_grad():
        for _ in range(3):
            assert torch.equal(forward(model, "mini", sim_device), reference("mini", sim_device))
        assert any("pinning failed" in sentence for sentence in swap.measured().sentences)


def test_no_pinned_memory_at_all_still_runs_and_says_so(
    sim_device: torch.device, sim: Any, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "pin", lambda self, nbytes: None)
    model = fresh("mini")
    with swap_blocks(model, ARGS, device=sim_device) as swap, torch.no_grad():
        for _ in range(2):
            assert torch.equal(forward(model, "mini", sim_device), reference("mini", sim_device))
        assert swap.measured().sentences
    for extra in ({}, {"ram_budget": "1GiB"}):
        opened = open_transformer(
            shelf.file("mini"),
            {**ARGS, **extra},
            device=sim_device,
            skeleton=skeleton("mini"),
        )
        with torch.no_grad():
            for _ in range(2):
                out = forward(opened, "mini", sim_device)
                assert torch.equal(out, reference("mini", sim_device))
        swap = opened.blockswap  # type: ignore[assignment]
        assert swap.measured().sentences, extra
        swap.close()


def test_host_without_meminfo_still_plans(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blockswap.swap.plan_inputs import model_bytes as facts

    monkeypatch.setattr(facts, "free_host_bytes", lambda: None)
    monkeypatch.setattr(device_module, "free_host_bytes", lambda: None)
    model = fresh("mini")
    with swap_blocks(model, None, device=device), torch.no_grad():
        assert torch.equal(forward(model, "mini", device), reference("mini", device))
