"""ComfyUI, and the packs beside this one, compute on the simulated accelerator; and a node counts.

Packs that were imported before this one keep the device that they found, so it is put in its place.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parents[3]
sys.path += [str(TESTS), str(TESTS / "comfy_core")]

import simulated  # noqa: E402

import simaccel  # noqa: E402

simaccel.ensure()
simaccel.configure(mode="eager", races="raise", poison=True)
simaccel.reset()
WHERE, patch = torch.device("sim", 0), pytest.MonkeyPatch()
simulated.point_at(WHERE, patch)
TOTAL = 1 << 34
patch.setattr(
    simulated.management,
    "get_total_memory",
    lambda _=None, torch_total_too=False: (TOTAL, TOTAL) if torch_total_too else TOTAL,
)
patch.setattr(simulated.management, "get_torch_device_name", str)
for module in list(sys.modules.values()):
    known = "WanVideoWrapper" in getattr(module, "__name__", "")
    if known and isinstance(vars(module).get("device"), torch.device):
        patch.setattr(module, "device", WHERE)


class AnyType(str):
    def __ne__(self, _: object) -> bool:
        return False


class TestDevice:
    """What the device has counted until here, in JSON; peak and copies start anew."""

    RETURN_TYPES = ()
    FUNCTION = "tell"
    CATEGORY = "tests"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"after": (AnyType("*"),)}}

    @classmethod
    def IS_CHANGED(cls, **_: object) -> float:
        return float("nan")

    def tell(self, after: object) -> dict:
        now = simaccel.counters()
        names = ("device_bytes", "device_bytes_peak", "d2h_bytes", "h2d_bytes")
        told = {name: getattr(now, name) for name in names} | {"races": len(simaccel.races())}
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats()
        return {"ui": {"text": [json.dumps(told)]}}


NODE_CLASS_MAPPINGS = {"TestDevice": TestDevice}
