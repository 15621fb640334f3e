"""The house can be read: what the documents name is there, and each file says what it decides."""

import re
from pathlib import Path

import pytest

from house import PACKAGE, ROOT, first_line, lines, modules, rooms

STAGED = ("plan", "swap", "stream")  # rooms that are folders of stages
EVERY = [path for room in rooms() for path in modules(room)]
DOCUMENT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", EVERY, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_file_says_in_one_line_what_it_decides(path: Path) -> None:
    said = first_line(path)
    assert said, "no first line"
    assert said.endswith((".", ":", "?")), "the first line is one whole sentence"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("room", rooms(), ids=lambda room: str(room.relative_to(PACKAGE.parent)))
def test_each_room_says_what_it_is(room: Path) -> None:
    assert first_line(room / "__init__.py").endswith(".")


def test_stages_have_at_most_ten_files_with_names_of_their_own() -> None:
    def within(*tops: str) -> list[Path]:
        return [r for r in rooms() if str(r.relative_to(PACKAGE)).split("/")[0] in tops]

    assert all(len(modules(room)) <= 10 for room in within(*STAGED, "nodes"))
    staged = within(*STAGED)
    names = [path.stem for room in staged for path in modules(room)]
    assert len(set(names)) == len(names), sorted(n for n in set(names) if names.count(n) > 1)


def test_the_room_table_and_the_folders_are_the_same() -> None:
    table = DOCUMENT[DOCUMENT.index("## Rooms") : DOCUMENT.index("## Journey of a budget")]
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)?)`", table))
    folders = {str(room.relative_to(PACKAGE)) for room in rooms() if room != PACKAGE}
    top = {path.stem for path in modules(PACKAGE)}
    parts = {name for name in folders if name.split("/")[0] in STAGED or "/" not in name}
    assert parts | top <= named, sorted((parts | top) - named)
    missing = [name for name in named if not (PACKAGE / name).is_dir() and name not in top]
    assert not [name for name in missing if "/" in name], missing


@pytest.mark.parametrize("name", sorted(set(re.findall(r"[a-z_]+(?:/[a-z_]+)+\.py", DOCUMENT))))
def test_every_file_that_the_architecture_names_is_there(name: str) -> None:
    assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


def test_the_tree_is_printed_whole() -> None:
    printed = "\n".join(lines())
    assert all(f" {path.name}  " in printed for path in EVERY)


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports files of folders without `__init__.py` by their name alone."""
    # ComfyUI's process runs its folder by itself.
    found = [
        path.name
        for path in (ROOT / "tests").rglob("test_*.py")
        if ".build" not in path.parts and "comfy_core" not in path.parts
    ]
    assert len(found) > 200
    assert not [name for name in set(found) if found.count(name) > 1]
