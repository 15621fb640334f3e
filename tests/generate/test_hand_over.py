"""The next one's files are asked for while the last one finishes, and read from there."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from whole import by_us, request_for

from blockswap.generate.run import prepare
from blockswap.plan.inputs.machine import Machine
from blockswap.store import file_io
from blockswap.store.ahead import ReadAhead

BLOCKS = ("UMT5Block", "WanTransformerBlock")
MIB = 2**20


class Events:
    """Blocks that begin and end, what is asked for ahead, and the bytes of it that are taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.taken = 0
        module = torch.nn.modules.module
        hooks = (
            (module.register_module_forward_pre_hook, self._begins),
            (
                module.register_module_forward_hook,
                self._ends,
            ),
        )
        self._hooks = [register(hook) for register, hook in hooks]
        monkeypatch.setattr(ReadAhead, "begin", self._asked())
        real = file_io.take

        def take(device: int, inode: int, offset: int, nbytes: int) -> bool:
            found = real(device, inode, offset, nbytes)
            self.taken += nbytes * found
            return found

        monkeypatch.setattr(file_io, "take", take)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begins(self, module: Any, *_: Any) -> None:
        if type(module).__name__ in BLOCKS:
            self.told.append(f"{type(module).__name__} begins")

    def _ends(self, module: Any, *_: Any) -> None:
        if type(module).__name__ in BLOCKS:
            self.told.append(f"{type(module).__name__} ends")

    def _asked(self) -> Callable[[Any], None]:
        def begin(reading: Any) -> None:
            self.told.append(f"{reading._stretches[0].path.parent.name} is asked for")
            reading._ask()  # here and now, so that all of it is there when it is wanted

        return begin

    def last(self, event: str) -> int:
        return len(self.told) - 1 - self.told[::-1].index(event)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Any:
    events = Events(monkeypatch)
    yield events
    events.close()


@pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
@pytest.mark.parametrize("kind", ["t2v", "two-experts"])
def test_from_turn_to_turn(
    kind: str,
    folders: Callable[[str], Path],
    tmp_path: Path,
    sim_device: torch.device,
    machine: Machine,
    events: Events,
) -> None:
    folder, request = folders(kind), request_for(kind, tmp_path)
    how: dict[str, Any] = {"device": sim_device, "machine": machine}
    _, free = prepare(folder, request, tmp_path / "a.mp4", **how)
    blocks, host = free.blocks, min(phase.host_bytes for phase in free.phases)
    asked = replace(
        request,
        vram_budget=max(p.device_bytes for p in free.phases if p.name != "sample"),
        ram_budget=host + 24 * MIB,
    )
    (frames,), _, plan = by_us(folder, asked, tmp_path / "b.mp4", sim_device, machine=machine)
    assert {unit.tier for unit in plan.blocks.units} >= {"disk"}, blocks.sentences
    for phase, block, asked_for in (
        ("encode", "UMT5Block", "transformer"),
        ("sample", "WanTransformerBlock", "vae"),
    ):
        at = events.told.index(f"{asked_for} is asked for")
        assert at < events.last(f"{block} ends"), "while the last block is still to end"
        assert at > events.last(f"{block} begins") - 8, "in the last forward, and not before"
        ahead = sum(stretch.nbytes for stretch in plan.ahead[phase])
        of_phase = next(p for p in plan.phases if p.name == phase)
        assert 0 < ahead <= asked.ram_budget - of_phase.host_bytes
    assert events.taken == sum(stretch.nbytes for stretch in plan.ahead["encode"])
    untold = replace(request, vram_budget=asked.vram_budget)
    (whole,), _, _ = by_us(folder, untold, tmp_path / "c.mp4", sim_device, machine=machine)
    assert np.array_equal(frames, whole)


def test_where_nothing_is_left_nothing_is_asked_for(
    folders: Callable[[str], Path], tmp_path: Path, events: Events
) -> None:
    folder, request = folders("t2v"), request_for("t2v", tmp_path)
    _, free = prepare(folder, request, tmp_path / "a.mp4", device="cpu")
    tight = replace(request, ram_budget=max(p.host_bytes for p in free.phases) + MIB)
    _, _, plan = by_us(folder, tight, tmp_path / "b.mp4", "cpu")
    for phase, reads in plan.ahead.items():
        used = next(p.host_bytes for p in plan.phases if p.name == phase)
        assert sum(stretch.nbytes for stretch in reads) <= max(0, tight.ram_budget - used)
