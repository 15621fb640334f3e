"""Packs of custom nodes in this process, imported as ComfyUI imports them."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import simulated as comfy_simulated
import torch

from blockswap.nodes.wrapper.pack import takeover_on

STAND_IN = Path(__file__).parents[1] / "comfy_host" / "packs" / "wrapper_stand_in"


def load(name: str, folder: Path) -> ModuleType:
    """The pack in `folder` under `name`, with a page server that takes everything."""
    if name in sys.modules:
        return sys.modules[name]
    _import_server()
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules[name] = pack
    spec.loader.exec_module(pack)
    return pack


def _import_server() -> None:
    # A folder of the core with a `utils` of its own is in front of it on the path by now.
    core = str(os.environ["BLOCKSWAP_COMFYUI"])
    sys.path.insert(0, core)
    sys.modules.pop("utils", None)
    importlib.import_module("utils.install_util")
    import server

    sys.path.remove(core)
    if not hasattr(server.PromptServer, "instance"):
        server.PromptServer.instance = MagicMock()


def point_at(name: str, device: torch.device, patch: pytest.MonkeyPatch) -> None:
    """Its modules keep the device that they found when they were imported."""
    for known, module in list(sys.modules.items()):
        inside = known == name or known.startswith(f"{name}.")
        if inside and isinstance(vars(module).get("device"), torch.device):
            patch.setattr(module, "device", device)


def simulated(
    name: str, request: pytest.FixtureRequest, patch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    """What a fixture yields from: ComfyUI and the pack compute on the simulated accelerator."""
    accelerator = request.getfixturevalue("sim_module")
    accelerator.configure(mode="eager", races="raise", poison=True)
    accelerator.reset()
    where = torch.device("sim", 0)
    comfy_simulated.point_at(where, patch)
    point_at(name, where, patch)
    yield where
    assert accelerator.races() == []


def hold_a_budget(
    plain: Any, swapped: Callable[..., Any], run: Callable[..., Any], sim: Any
) -> None:
    """Asserts that a budget of four fifths of the weights is kept by the device itself.

    Its peak, less what the same forward takes beside the weights where all of them are there.
    """

    def peak_of(patcher: Any) -> tuple[int, int]:
        """Most bytes in a run, and what stays after it."""
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats()
        start = sim.counters().device_bytes
        run(patcher, force_offload=False)
        after = sim.counters()
        return after.device_bytes_peak - start, after.device_bytes - start

    whole, usual = peak_of(plain)
    root = plain.model.diffusion_model
    weights = sum(t.nbytes for t in (*root.parameters(), *root.buffers()))
    run(plain)
    budget = weights * 4 // 5
    ours = swapped(plain, vram_budget=budget)
    found, kept = peak_of(ours)
    plan = takeover_on(ours).swap.plan
    assert plan.streamed
    # Of single numbers the pack leaves some in host memory, and some on the device between runs.
    numbers = sum(buffer.numel() == 1 for buffer in root.buffers())
    assert plan.device_bytes - 512 * numbers <= kept <= plan.device_bytes <= budget
    assert found <= budget + whole - usual
    takeover_on(ours).close()
