"""The loader in a memory cgroup smaller than the checkpoint, against the core's outside of it."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from comfy_host import checkpoints, server
from comfy_host.client import Client
from comfy_host.environment import Environment
from comfy_host.graphs import OURS
from comfy_host.sampling import Sampled, prompt
from memory_group import MemoryGroup, memory_group, require_memory_groups

pytestmark = [pytest.mark.slow, pytest.mark.root]

# Wan 1.3B with 24 of its 30 blocks: 2.3 GB in the file. ComfyUI alone takes about 0.7 GB, its own
# loader would add the 4.5 GB that the model is in float32, which it computes in on a CPU.
MODEL = replace(checkpoints.T2V, dim=1536, ffn_dim=8960, num_layers=24, num_heads=12)
NAME = "wan_24_blocks.safetensors"
LIMIT = 1800 * 10**6


@pytest.fixture(scope="module")
def group() -> Iterator[MemoryGroup]:
    require_memory_groups()
    with memory_group(LIMIT) as made:
        yield made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("low-ram")
    if shutil.disk_usage(folder).free < 4e9:
        pytest.skip("needs 4 GB of free disk")
    server.prepare(folder)
    checkpoints.write_model(folder / "models" / "diffusion_models" / NAME, MODEL)
    yield folder
    shutil.rmtree(folder / "models")


def sampled(launch: server.Launch, how: Sampled) -> torch.Tensor:
    with server.running(launch) as running:
        comfy = Client(running)
        return comfy.latent(comfy.run_well(prompt(how)), "latent")


def test_a_model_larger_than_the_memory_runs_and_gives_the_same(
    environment: Environment,
    group: MemoryGroup,
    root: Path,
    tmp_path_factory: pytest.TempPathFactory,
):
    checkpoint = root / "models" / "diffusion_models" / NAME
    assert checkpoint.stat().st_size > LIMIT
    inside = server.Launch(environment, root, server.default_packs(), prefix=tuple(group.command()))
    ours = sampled(inside, Sampled(NAME, loader=f"{OURS}Loader"))
    assert group.peak_bytes <= LIMIT
    other = tmp_path_factory.mktemp("plenty-of-ram")
    (other / "models").symlink_to(root / "models", target_is_directory=True)
    theirs = sampled(server.Launch(environment, other, server.default_packs()), Sampled(NAME))
    assert torch.isfinite(ours).all()
    assert torch.equal(ours, theirs)
