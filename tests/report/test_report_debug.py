"""The line a visit."""

from dataclasses import replace

from blockswap.events import Visit
from blockswap.report import debug_line

RAM = Visit(
    3, "blocks.12", "ram", 1, 640_000_000, 1.0, 1.001, 1.041, copy_started=0.99, copy_ended=1.001
)


def test_a_block_from_ram_tells_its_copy_wait_and_compute() -> None:
    assert debug_line(RAM) == (
        "forward 3 · blocks.12 · ram · slot 1 · copy 610.4 MiB 11.0 ms (58.2 GB/s)"
        " · waited 1.0 ms · computed 40.0 ms"
    )


def test_a_block_read_straight_from_disk_tells_its_read() -> None:
    visit = Visit(0, "blocks.2", "disk", 0, 0, 1.0, 1.0, 1.5, read_started=0.5, read_ended=0.75)
    assert debug_line(visit) == (
        "forward 0 · blocks.2 · disk · slot 0 · read 250.0 ms · waited 0 µs · computed 500.0 ms"
    )


def test_a_resident_tells_only_its_compute() -> None:
    visit = Visit(0, "blocks.0", "resident", None, 0, 1.0, 1.0, 1.5)
    assert debug_line(visit) == "forward 0 · blocks.0 · resident · waited 0 µs · computed 500.0 ms"


def test_a_copy_that_began_after_entry_is_called_on_demand() -> None:
    assert "waited 1.0 ms (fetched on demand)" in debug_line(replace(RAM, copy_started=1.0))


def test_a_copy_without_times_is_not_measured() -> None:
    line = debug_line(replace(RAM, copy_started=None, copy_ended=None))
    assert "copy 610.4 MiB not measured" in line


def test_an_instant_copy_has_no_rate() -> None:
    assert "(not measured)" in debug_line(replace(RAM, copy_started=1.001))
