"""Sizes, times and rates: what people write is read as they mean it, and printed as they read."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockswap.errors import ArgsError
from blockswap.units import (
    format_bytes,
    format_bytes_at_least,
    format_flops,
    format_rate,
    format_seconds,
    parse_bytes,
)


class Eight:
    """An integer of another library: numpy's have the same single method."""

    def __index__(self):
        return 8


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("8GiB", 8 * 2**30),
        ("8 GB", 8 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5g", 3 * 2**29),
        ("24G", 24 * 2**30),
        ("24Gi", 24 * 2**30),
        ("7m", 7 * 2**20),
        ("3kb", 3000),
        ("1tib", 2**40),
        (".5 GiB", 2**29),
        ("2.GiB", 2**31),
        ("  12 B ", 12),
        ("123456", 123456),
        ("0", 0),
        ("1.9", 1),
        (123456, 123456),
        (1e9, 10**9),
        (1.9, 1),
        (Eight(), 8),
    ],
)
def test_sizes_are_read_as_they_are_meant(text, nbytes):
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    "value",
    [
        *("", "much", "8 GiBs", "1,5g", "1e9", "0x10", "٣g", "8 iB", "8i", "--8", "9" * 5000),
        *(None, True, [8], math.nan, math.inf, -math.inf),
    ],
)
def test_nonsense_is_refused_with_the_name_and_an_example(value):
    with pytest.raises(ArgsError, match=r"^vram_budget=.* is no size: .*8GiB"):
        parse_bytes(value, name="vram_budget")


def test_a_very_long_text_is_not_repeated_whole():
    with pytest.raises(ArgsError) as caught:
        parse_bytes("9" * 5000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [-1, -0.5])
def test_a_negative_size_is_refused(value):
    with pytest.raises(ArgsError, match="is negative"):
        parse_bytes(value)


def test_a_negative_text_is_refused():
    with pytest.raises(ArgsError, match="'-1GiB' is no size"):
        parse_bytes("-1GiB")


@pytest.mark.parametrize("value", [2**63, 1e300, "99999999999TiB"])
def test_more_than_any_memory_is_refused(value):
    with pytest.raises(ArgsError, match="more than any memory"):
        parse_bytes(value)


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_a_plain_number_of_bytes_is_itself(nbytes):
    assert parse_bytes(nbytes) == parse_bytes(str(nbytes)) == parse_bytes(f"{nbytes}B") == nbytes


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (702788608, "670.2 MiB"),
        (2**20 - 1, "1.0 MiB"),
        (8_700_000_000, "8.1 GiB"),
        (2**40, "1.0 TiB"),
        (2**50, "1024.0 TiB"),
        (-(2**20), "-1.0 MiB"),
    ],
)
def test_sizes_are_printed_in_binary_units(nbytes, text):
    assert format_bytes(nbytes) == text


@settings(deadline=None)
@given(st.integers(0, 2**50))
def test_a_printed_size_reads_back_within_its_last_digit(nbytes):
    assert parse_bytes(format_bytes(nbytes)) == pytest.approx(nbytes, rel=0.06, abs=1)


@settings(deadline=None)
@given(st.integers(0, 2**50))
def test_a_size_rounded_up_is_enough_when_read_back(nbytes):
    read = parse_bytes(format_bytes_at_least(nbytes))
    assert nbytes <= read <= nbytes * 1.11


def test_a_whole_size_is_not_rounded_up():
    assert format_bytes_at_least(2**31) == "2.0 GiB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 µs"),
        (120e-6, "120 µs"),
        (0.9996e-3, "1.0 ms"),
        (0.028, "28.0 ms"),
        (0.99996, "1.00 s"),
        (1.534, "1.53 s"),
        (59.996, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3725, "1 h 02 min"),
        (-0.5, "-500.0 ms"),
        (-61, "-1 min 01 s"),
    ],
)
def test_times_are_printed_in_the_unit_that_fits(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(25e9, "25.0 GB/s"), (980e6, "980 MB/s"), (999.9e6, "1.0 GB/s"), (1500, "1.5 kB/s")],
)
def test_rates_are_printed_in_decimal_units(rate, text):
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (99.09e12, "99.1 TFLOP/s"),
        (999.9e9, "1.0 TFLOP/s"),
        (148e9, "148 GFLOP/s"),
        (2e6, "0.002 GFLOP/s"),
    ],
)
def test_rates_of_computing_have_their_unit(rate, text):
    assert format_flops(rate) == text
