"""Files in every format, written on first use."""

import pytest
from files import Shelf


@pytest.fixture(scope="session")
def packed_files(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("formats"))
