"""The ComfyUI of these tests, and the small files that the example workflows name."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from comfy_host import example_files, graphs, server
from comfy_host.client import Client
from comfy_host.environment import CannotBuild, Environment, ensure


@pytest.fixture(scope="session")
def environment() -> Environment:
    """A ComfyUI that starts; skips where none can be built (never where CI is set)."""
    if sys.platform != "linux":
        pytest.skip("the test environment of ComfyUI is pinned for Linux")
    try:
        return ensure()
    except CannotBuild as error:
        if os.environ.get("CI") or os.environ.get("BLOCKSWAP_COMFYUI"):
            raise
        pytest.skip(f"no ComfyUI could be built here: {error}")


@pytest.fixture(scope="session")
def models(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `models` folder with a small file of every name that the example workflows have."""
    root = tmp_path_factory.mktemp("comfy-models")
    server.prepare(root)
    example_files.write_models(root / "models", environment)
    return root / "models"


@pytest.fixture(scope="session")
def base(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a fresh base directory that shares the model files: `base("name")`."""

    def make(name: str) -> Path:
        root = tmp_path_factory.mktemp(name)
        (root / "models").symlink_to(models, target_is_directory=True)
        server.prepare(root)
        example_files.write_picture(root / "input")
        settings = root / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir()
        # A page without the greeting of a first visit.
        settings.write_text('{"Comfy.TutorialCompleted": true, "Comfy.Locale": "en"}')
        return root

    return make


@pytest.fixture(scope="session")
def comfy(environment: Environment, base: Callable[[str], Path]) -> Iterator[Client]:
    """A ComfyUI with this pack and one for GGUF, one for all tests of a process."""
    launch = server.Launch(environment, base("comfy"), server.with_gguf())
    with server.running(launch) as running:
        yield Client(running)


@pytest.fixture(scope="session")
def info(comfy: Client) -> graphs.ObjectInfo:
    """The definitions of all nodes, as the page gets them."""
    return comfy.get("/object_info")
