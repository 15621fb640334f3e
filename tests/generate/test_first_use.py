"""Libraries take their memory once, before the process is looked at, and nothing else changes."""

import subprocess
import sys

import pytest
import torch

from blockswap.generate.first_use import FIRST_USE_BYTES, take_first_use

SCRIPT = """
from blockswap.generate.first_use import take_first_use
from blockswap.store.host_memory import resident_host_bytes
import av, ftfy
before = resident_host_bytes()
take_first_use()
taken = resident_host_bytes()
for _ in range(3):
    take_first_use()
print(taken - before, resident_host_bytes() - taken)
"""


@pytest.mark.slow
def test_what_is_taken_is_taken_once() -> None:
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    ).stdout
    first, again = map(int, told.split())
    assert first > FIRST_USE_BYTES
    assert again < FIRST_USE_BYTES / 4


def test_random_numbers_and_defaults_stay() -> None:
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            take_first_use()
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
