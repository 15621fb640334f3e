"""A machine as a value: times from rates, and the way to JSON and back."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockswap.errors import ArgsError
from blockswap.plan.inputs.machine import DiskFigures, Machine, machine_from

MACHINE = Machine(
    name="a card",
    on_host=False,
    flops=(("bfloat16", 100e12), ("float32", 50e12)),
    attention_flops=(("bfloat16", 80e12),),
    device_bytes=24 * 2**30,
    host_bytes=64 * 2**30,
    memory_rate=1e12,
    pinned_link=25e9,
    pageable_link=8e9,
    disk=DiskFigures(3e9, 4, 8 * 2**20, True),
    source="measured today",
)


def test_seconds_are_work_over_rate() -> None:
    assert MACHINE.compute_seconds(200e12, "bfloat16") == 2
    assert MACHINE.compute_seconds(200e12, "bfloat16", attention_flops=40e12) == 2.5
    assert MACHINE.copy_seconds(50 * 10**9) == 2
    assert MACHINE.copy_seconds(16 * 10**9, pinned=False) == 2
    assert MACHINE.read_seconds(6 * 10**9) == 2


def test_attention_goes_by_the_rate_of_matrix_products_where_its_own_is_unknown() -> None:
    assert MACHINE.compute_seconds(50e12, "float32", attention_flops=100e12) == 3


def test_what_is_unknown_takes_none_seconds() -> None:
    unknown = Machine(name="", on_host=False, flops=())
    assert MACHINE.compute_seconds(1, "float64") is None
    assert unknown.copy_seconds(1) is None
    assert unknown.copy_seconds(1, pinned=False) is None
    assert unknown.read_seconds(1) is None


def test_on_the_host_there_is_nothing_to_copy() -> None:
    assert Machine(name="cpu", on_host=True, flops=()).copy_seconds(10**12) == 0


def test_equal_machines_are_equal_keys() -> None:
    assert len({MACHINE, machine_from(MACHINE.to_dict())}) == 1


rates = st.floats(min_value=1e-3, max_value=1e30)
sizes = st.integers(min_value=0, max_value=2**62)
by_dtype = st.dictionaries(st.text(max_size=9), rates, max_size=3).map(lambda d: tuple(d.items()))
machines = st.builds(
    Machine,
    name=st.text(),
    on_host=st.booleans(),
    flops=by_dtype,
    attention_flops=by_dtype,
    device_bytes=st.none() | sizes,
    host_bytes=st.none() | sizes,
    memory_rate=st.none() | rates,
    pinned_link=st.none() | rates,
    pageable_link=st.none() | rates,
    disk=st.none()
    | st.builds(
        DiskFigures,
        rates,
        st.integers(min_value=1, max_value=64),
        st.integers(min_value=1, max_value=2**40),
        st.booleans(),
    ),
    source=st.text(),
)


@given(machines)
def test_json_keeps_every_machine(machine: Machine) -> None:
    assert machine_from(json.loads(json.dumps(machine.to_dict()))) == machine


@pytest.mark.parametrize(
    "damage",
    [
        {"name": None},
        {"flops": {"bfloat16": 0}},
        {"flops": {"bfloat16": True}},
        {"flops": None},
        {"pinned_link": "25 GB/s"},
        {"pinned_link": math.inf},
        {"device_bytes": -1},
        {"device_bytes": 1e9},
        {"disk": {"bytes_per_second": None, "readers": 4, "chunk_bytes": 1, "direct": True}},
        {"disk": {"bytes_per_second": 1e9, "readers": 0, "chunk_bytes": 1, "direct": True}},
        {"disk": {"bytes_per_second": 1e9, "readers": 1, "direct": True}},
        {"disk": 7},
    ],
)
def test_what_is_no_machine_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ArgsError, match="this is no machine as a probe writes it"):
        machine_from(MACHINE.to_dict() | damage)


def test_a_missing_part_is_refused() -> None:
    told = MACHINE.to_dict()
    del told["pinned_link"]
    with pytest.raises(ArgsError, match="pinned_link"):
        machine_from(told)
