"""The process that forks ranks ends with the last test of ranks."""

from collections.abc import Iterator

import fleet
import pytest


@pytest.fixture(scope="package", autouse=True)
def _ranks_end() -> Iterator[None]:
    yield
    fleet.stop()
