"""On a device with room for a third of the model: every family and format, by both nodes."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import comfy.model_management as management
import every_file
import pytest
import quantised
import simulated
import tiny
import torch
from safetensors.torch import save_file
from test_loader import opened
from tiny import swapped

from blockswap.nodes.clone.holding import holding_of

pytestmark = pytest.mark.parametrize("sim_device", ["sim-eager"], indirect=True)
# An older core, in CI, tries one; a newer one, by hand, all of them.
BLOCKS = 60 if quantised.PER_LAYER else 30
FAMILIES = tiny.FAMILIES if quantised.PER_LAYER else ("vace",)
FORMATS = every_file.formats() if quantised.PER_LAYER else ()


@pytest.fixture(autouse=True)
def _on_sim(sim_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from simulated.computing_on(sim_device, monkeypatch)


@pytest.mark.parametrize(
    ("family", "kind"),
    [*((family, "bf16") for family in FAMILIES), *(("t2v", kind) for kind in FORMATS)],
)
def test_the_latents_of_the_whole_model(
    family: str,
    kind: str,
    sim: ModuleType,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Computing with a quantised weight makes a wider one at a time.
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 1 << 20)
    weights, words = tiny.state_dict(family, blocks=BLOCKS), None
    if kind != "bf16":
        weights, words = every_file.formats()[kind](weights)
    path = str(tmp_path / "wan.safetensors")
    save_file(weights, path, words)
    plain = tiny.loaded(weights, dict(words) if words else None)
    del weights
    expected = tiny.sample(plain, steps=1)
    management.unload_all_models()
    room = plain.model_size() // 3
    simulated.limit(sim, request, room)
    for model in (swapped(plain), swapped(plain, blocks=f"0-{BLOCKS - 1}"), opened(path)):
        assert torch.equal(tiny.sample(model, steps=1), expected)
        plan = holding_of(model.model).plan
        assert len([unit for unit in plan.streamed if ".blocks" not in unit]) > BLOCKS // 3
        assert plan.device_bytes < room
        management.unload_all_models()
