"""Fixtures of whole videos: pipelines on disk, and what diffusers itself makes of them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from single_files import write
from tiny_pipelines import SAVED_AS, save

from blockswap.cache import cache_folder
from blockswap.plan.inputs.machine import Machine
from blockswap.plan.inputs.margin import NO_MARGIN
from device_limit import limit

__all__ = ["limit"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a pipeline of that kind, written on first use.

    "files": two experts in single files; "MODEL.FORMAT": single files of heavy transformers.
    """
    root = tmp_path_factory.mktemp("pipelines")

    def folder(kind: str) -> Path:
        kind = SAVED_AS.get(kind, kind)
        path = root / kind
        if not path.exists() and kind == "files":
            write(path, "experts")
        if not path.exists() and "." in kind:
            model, _, form = kind.partition(".")
            write(path, form, model, heavy=True)
        return path if path.exists() else save(kind, path)

    return folder


@pytest.fixture
def machine() -> Machine:
    """One whose plans keep nothing free: the models here are smaller than any margin."""
    return Machine("tiny", on_host=False, flops=(), margin=NO_MARGIN)


@pytest.fixture(autouse=True)
def no_embeddings() -> None:
    """No test finds embeddings that another has kept; figures of models are the same for all."""
    shutil.rmtree(cache_folder() / "embeddings", ignore_errors=True)
