"""The ComfyUI of these tests, and the small files that the example workflows name."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfy_host import checkpoints, graphs, server
from comfy_host.client import Client
from comfy_host.environment import CannotBuild, Environment, ensure
from PIL import Image

MAKE_VAE = Path(checkpoints.__file__).with_name("make_vae.py")
TEXT_ENCODER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"


@pytest.fixture(scope="session")
def environment() -> Environment:
    """A ComfyUI that starts; skips where none can be built (never where CI is set)."""
    if sys.platform != "linux":
        pytest.skip("the test environment of ComfyUI is pinned for Linux")
    try:
        return ensure()
    except CannotBuild as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no ComfyUI could be built here: {error}")


@pytest.fixture(scope="session")
def files(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `models` folder with a small file of every name that the example workflows have."""
    root = tmp_path_factory.mktemp("comfy-models")
    server.prepare(root)
    models = root / "models"
    unets, loras = models / "diffusion_models", models / "loras"
    checkpoints.write_model(unets / "wan2.1_t2v_14B_fp16.safetensors", checkpoints.T2V)
    checkpoints.write_model(unets / "wan2.1_i2v_480p_14B_fp16.safetensors", checkpoints.I2V)
    for seed, noise in enumerate(("high", "low"), start=1):
        expert = unets / f"wan2.2_t2v_{noise}_noise_14B_fp8_scaled.safetensors"
        checkpoints.write_fp8_scaled(expert, checkpoints.T2V, seed=seed)
        lora = loras / f"wan2.2_t2v_lightx2v_4steps_lora_v1.1_{noise}_noise.safetensors"
        checkpoints.write_lora(lora, checkpoints.T2V, seed=seed)
    checkpoints.write_fp8_tensors(unets / "fp8_tensors.safetensors", checkpoints.T2V, seed=3)
    subprocess.run(
        [environment.python, MAKE_VAE, "--cpu", "--output-directory", models / "vae"],
        cwd=environment.core,
        env={**os.environ, "PYTHONPATH": str(environment.core)},
        check=True,
    )
    # Stand-ins answer for these two in a run; the page wants to find their names.
    (models / "text_encoders" / TEXT_ENCODER).touch()
    (models / "clip_vision" / "clip_vision_h.safetensors").touch()
    return models


@pytest.fixture(scope="session")
def base(files: Path, tmp_path_factory: pytest.TempPathFactory):
    """Makes a fresh base directory that shares the model files: `base("name")`."""

    def make(name: str) -> Path:
        root = tmp_path_factory.mktemp(name)
        (root / "models").symlink_to(files, target_is_directory=True)
        server.prepare(root)
        Image.new("RGB", (64, 64), (200, 60, 40)).save(root / "input" / "example.png")
        return root

    return make


@pytest.fixture(scope="module")
def comfy(environment: Environment, base) -> Iterator[Client]:
    """A ComfyUI with this pack, one for all tests of a file."""
    launch = server.Launch(environment, base("comfy"), server.default_packs())
    with server.running(launch) as running:
        yield Client(running)


@pytest.fixture(scope="module")
def info(comfy: Client) -> graphs.ObjectInfo:
    return comfy.get("/object_info")
