"""The real ComfyUI in this process: its package on the path, its options set to a quiet CPU."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOME = os.environ.get("BLOCKSWAP_COMFYUI")
collect_ignore_glob: list[str] = []

if HOME is None:
    # tests/comfy builds a ComfyUI and runs these tests in it.
    collect_ignore_glob.append("test_*.py")
else:
    # ComfyUI reads its options from the command line while it is imported.
    # The attention it would choose for a CPU splits its work by how much memory is free, which
    # changes the last bits.
    given, sys.argv = sys.argv, ["main.py", "--cpu", "--use-pytorch-cross-attention"]
    sys.path.insert(0, str(Path(HOME)))
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args

    sys.argv = given
    import comfy.model_management


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """ComfyUI runs everything in inference mode; nothing stays loaded from test to test."""
    import torch

    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
        comfy.model_management.unload_all_models()
        comfy.model_management.current_loaded_models.clear()
        gc.collect()  # a test that limits the device's memory counts what is on it
