"""The real wrapper pack beside ours in a real ComfyUI, whichever is loaded first.

By hand, with BLOCKSWAP_WRAPPER=<folder of the pack>; its Python needs that pack's packages. On the
CPU, and with all of it pointed at the simulated accelerator, where blocks really are streamed.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_installations import THEIRS, _name

from comfy_host import server
from comfy_host.client import Client
from comfy_host.environment import Environment
from comfy_host.graphs import ARGS, OURS
from comfy_host.sampling import _encode
from comfy_host.server import REPOSITORY

WRAPPER = os.environ.get("BLOCKSWAP_WRAPPER") or None
pytestmark = pytest.mark.skipif(
    WRAPPER is None, reason="tried by hand: set BLOCKSWAP_WRAPPER to the folder of the real pack"
)
FILE = "wrapper-tiny.safetensors"
BLOCKS = 30
ON_SIM = server.PACKS / "on_sim"
# In a process of its own: the pack's classes ask for a ComfyUI around them.
WRITER = """
import sys
_, core, target = sys.argv
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, core)
import comfy.options
comfy.options.enable_args_parsing()
import real_wrapper
from safetensors.torch import save_file
save_file(real_wrapper.weights(), target)
"""


@pytest.fixture(scope="module", params=["wrapper first", "wrapper last"])
def order(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _beside(
    order: str, environment: Environment, root: Path, more: dict[str, Path]
) -> server.Launch:
    """A ComfyUI with both packs, and a small file for the wrapper's loader."""
    target = root / "models" / "diffusion_models" / FILE
    if not target.exists():
        tests = REPOSITORY / "tests"
        variables = os.environ | {
            "BLOCKSWAP_COMFYUI": str(environment.core),
            "PYTHONPATH": os.pathsep.join(
                map(str, (REPOSITORY / "src", tests, tests / "comfy_core"))
            ),
        }
        command = [environment.python, "-c", WRITER, environment.core, target]
        subprocess.run(command, env=variables, check=True)
    packs = {**server.default_packs(), **more}
    packs[_name(root, packs, first=order == "wrapper first")] = Path(str(WRAPPER))
    return server.Launch(environment, root, packs)


@pytest.fixture(scope="module")
def both(order: str, environment: Environment, base: Callable[[str], Path]) -> Iterator[Client]:
    launch = _beside(order, environment, base("real-wrapper"), {})
    with server.running(launch) as running:
        yield Client(running)


@pytest.fixture(scope="module")
def on_sim(order: str, environment: Environment, base: Callable[[str], Path]) -> Iterator[Client]:
    launch = _beside(order, environment, base("sim-wrapper"), {"blockswap-on-sim": ON_SIM})
    with server.running(launch) as running:
        yield Client(running)


def _graph(node: str | None, **asked: object) -> dict[str, Any]:
    """Their loader and sampler, with `node` between them, or nothing."""
    graph: dict[str, Any] = {
        "model": {
            "class_type": "WanVideoModelLoader",
            "inputs": {
                "model": FILE, "base_precision": "bf16", "quantization": "disabled",
                "load_device": "offload_device", "attention_mode": "sdpa",
            },
        },
        "text": {"class_type": "TestTextEncoderLoader", "inputs": {}},
        "positive": _encode("a fox in the snow"),
        "negative": _encode("bad quality"),
        "embeds": {
            "class_type": "WanVideoTextEmbedBridge",
            "inputs": {"positive": ["positive", 0], "negative": ["negative", 0]},
        },
        "empty": {
            "class_type": "WanVideoEmptyEmbeds",
            "inputs": {"width": 64, "height": 64, "num_frames": 9},
        },
        "args": {"class_type": f"{OURS}Args", "inputs": {**ARGS, **asked}},
        "sampler": {
            "class_type": "WanVideoSampler",
            "inputs": {
                "model": ["model", 0], "image_embeds": ["empty", 0], "text_embeds": ["embeds", 0],
                "steps": 2, "cfg": 3.0, "shift": 5.0, "seed": 5, "force_offload": True,
                "scheduler": "euler", "riflex_freq_index": 0,
            },
        },
        "latent": {
            "class_type": "SaveLatent",
            "inputs": {"samples": ["sampler", 0], "filename_prefix": "latent"},
        },
    }  # fmt: skip
    if node is not None:
        given = {"model": ["model", 0], "block_swap_args": ["args", 0]}
        graph["swap"] = {"class_type": node, "inputs": given}
        graph["sampler"]["inputs"]["model"] = ["swap", 0]
    return graph


def test_ids_and_latents(both: Client) -> None:
    info = both.get("/object_info")
    for key in THEIRS:
        assert "WanVideoWrapper" in info[key]["python_module"], key
    assert info[OURS]["python_module"] == f"custom_nodes.{server.PACK}"
    expected = both.latent(both.run_well(_graph(None)), "latent")
    assert torch.isfinite(expected).all()
    for node in (OURS, "WanVideoSetBlockSwap"):
        ran = both.run_well(_graph(node, blocks="0,2,3-5"))
        assert torch.equal(both.latent(ran, "latent"), expected)
    graph = _graph(OURS, blocks="0,2,3-5")
    told = {"model": ["swap", 0], "after": ["sampler", 0], "free_host_memory": True}
    graph["report"] = {"class_type": f"{OURS}Report", "inputs": told}
    (text,) = both.run_well(graph).outputs["report"]["text"]
    assert "its blocks are streamed here, its own swap is off" in text
    failed = both.run(_graph(OURS, blocks="38-41")).event("execution_error")
    assert failed is not None
    assert "Invalid range: '38-41': the model has blocks 0-29" in failed["exception_message"]


def _ran(client: Client, node: str | None, **asked: object) -> tuple[torch.Tensor, str, Any]:
    """Latents, the report's text, and what the device has counted in the sampler's run.

    The model is not offloaded at the end: that would copy its weights, by the pack itself.
    """
    graph = _graph(node, **asked)
    graph["sampler"]["inputs"]["force_offload"] = False
    graph["device"] = {"class_type": "TestDevice", "inputs": {"after": ["sampler", 0]}}
    if node is not None:
        told = {"model": ["swap", 0], "after": ["sampler", 0], "free_host_memory": False}
        graph["report"] = {"class_type": f"{OURS}Report", "inputs": told}
    client.free()
    before = {"class_type": "TestDevice", "inputs": {"after": ["model", 0]}}
    client.run_well({"model": graph["model"], "device": before})
    ran = client.run_well(graph)
    text = "" if node is None else ran.outputs["report"]["text"][0]
    (counted,) = ran.outputs["device"]["text"]
    return client.latent(ran, "latent"), text, json.loads(counted)


ASKED: tuple[tuple[dict[str, object], int | None], ...] = (
    ({"blocks_to_swap": 0}, 0),
    ({"blocks_to_swap": 1}, 1),
    ({"blocks_to_swap": 7}, 7),
    ({"blocks_to_swap": 9999}, BLOCKS),
    ({"blocks": "0,2,3-5"}, 5),
    ({"vram_budget": "12MiB"}, None),
)
TEXT_BYTES = 2 * 512 * 4096 * 4  # the sampler leaves both prompts on the device


def test_counts_lists_and_budgets_where_blocks_are_streamed(on_sim: Client) -> None:
    expected, _, whole = _ran(on_sim, None)
    assert torch.isfinite(expected).all()
    assert whole["device_bytes"] - TEXT_BYTES > 12 << 20
    copied_back = whole["d2h_bytes"]
    for asked, count in ASKED:
        latents, text, counted = _ran(on_sim, OURS, **asked)
        assert torch.equal(latents, expected)
        (found,) = re.findall(rf"block swap on sim:0: (\d+) of {BLOCKS} blocks streamed", text)
        assert int(found) == count if count is not None else 0 < int(found) < BLOCKS, asked
        # Never more than a run without block swap copies to the host: no weight, by us or by it.
        assert counted["d2h_bytes"] - copied_back == whole["d2h_bytes"], asked
        copied_back = counted["d2h_bytes"]
        assert counted["races"] == 0
        if count is None:
            assert counted["device_bytes"] - TEXT_BYTES <= 12 << 20
    failed = on_sim.run(_graph(OURS, blocks="38-41")).event("execution_error")
    assert failed is not None
    assert "Invalid range: '38-41': the model has blocks 0-29" in failed["exception_message"]
