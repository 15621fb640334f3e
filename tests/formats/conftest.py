"""Files in every format, and LoRAs for them, written on first use."""

import functools

import pytest
from files import Shelf
from merged import LoraFiles, write_loras


@pytest.fixture(scope="session")
def packed_files(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("formats"))


@pytest.fixture(scope="session")
def lora_files(tmp_path_factory: pytest.TempPathFactory) -> LoraFiles:
    """Each LoRA as a file, with its strength, for a kind of model."""
    return functools.cache(lambda model: write_loras(tmp_path_factory.mktemp("loras"), model))
