"""Every family and every format over HTTP: by the swap node and the loader, as without them."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from comfy_host.client import Client
from comfy_host.environment import Environment
from comfy_host.graphs import ARGS, OURS
from comfy_host.sampling import Sampled, prompt
from comfy_host.server import REPOSITORY


@pytest.fixture(scope="module")
def files(environment: Environment, models: Path) -> list[str]:
    """The names of the files, by that ComfyUI's own classes and quantisation."""
    tests, folder = REPOSITORY / "tests", models / "diffusion_models"
    variables = os.environ | {
        "BLOCKSWAP_COMFYUI": str(environment.core),
        "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY / "src", tests, tests / "comfy_core"))),
    }
    writer = tests / "comfy_core" / "every_file.py"
    subprocess.run([environment.python, writer, folder], env=variables, check=True)
    return sorted(path.name for path in folder.glob("f*-*.safetensors"))


@pytest.mark.parametrize(("kind", "least"), [("family", 8), ("format", 6)])
def test_as_without_us(kind: str, least: int, comfy: Client, files: list[str]) -> None:
    names = [name for name in files if name.startswith(kind)]
    assert len(names) >= least
    for name in names:
        plain = prompt(replace(Sampled(name), steps=1))
        graph = dict(plain)
        graph["args"] = {
            "class_type": f"{OURS}Args",
            "inputs": {**ARGS, "blocks": "0,2-4", "vace_blocks_to_swap": 1},
        }
        asked = {"block_swap_args": ["args", 0]}
        graph["swap"] = {"class_type": OURS, "inputs": {"model": ["model", 0], **asked}}
        opened = {**plain["model"]["inputs"], **asked}
        graph["loader"] = {"class_type": f"{OURS}Loader", "inputs": opened}
        for ours in ("swap", "loader"):
            given = {**plain["sampler"]["inputs"], "model": [ours, 0]}
            graph[f"{ours}-sampler"] = {"class_type": "KSampler", "inputs": given}
            graph[f"{ours}-latent"] = {
                "class_type": "SaveLatent",
                "inputs": {"samples": [f"{ours}-sampler", 0], "filename_prefix": ours},
            }
        ran = comfy.run_well(graph)
        expected = comfy.latent(ran, "latent")
        assert torch.isfinite(expected).all(), name
        for ours in ("swap", "loader"):
            assert torch.equal(comfy.latent(ran, f"{ours}-latent"), expected), (name, ours)
