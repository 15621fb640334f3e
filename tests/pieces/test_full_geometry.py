"""What a forward in pieces needs at full size, by following it without data."""

from dataclasses import replace

import pytest

from blockswap.layout.geometry import VARIANTS
from blockswap.plan.inputs.workload import Workload
from blockswap.predict.wan import follow_in_pieces
from blockswap.units import GIB

AT_720P = Workload(1280, 720, 81)
AIMS = [
    ("wan2.2-t2v-a14b", AT_720P, 2.7),
    ("wan2.1-i2v-14b", AT_720P, 2.7),
    ("wan2.1-vace-14b", AT_720P, 3.5),
    ("wan2.2-ti2v-5b", Workload(1280, 704, 121, per_token_timestep=True), 0.9),
    ("wan2.2-t2v-a14b", replace(AT_720P, per_token_timestep=True), 2.75),
]


@pytest.mark.parametrize(("model", "workload", "most"), AIMS)
def test_activations_are_within_their_aim(model: str, workload: Workload, most: float) -> None:
    assert follow_in_pieces(VARIANTS[model], workload, 2048) <= most * GIB
