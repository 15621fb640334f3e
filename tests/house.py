"""The tree of the package with the first line of each file: `make house` prints it."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "blockswap"


def rooms() -> list[Path]:
    """Every folder of the package that holds modules."""
    return sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


def modules(folder: Path) -> list[Path]:
    """The files of a room itself, without what only starts it."""
    return sorted(path for path in folder.glob("*.py") if not path.name.startswith("__"))


def first_line(path: Path) -> str:
    """What a file says of itself first."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return said.split("\n", 1)[0]


def lines(folder: Path = PACKAGE, depth: int = 0) -> Iterator[str]:
    """The tree below `folder`, a line a folder or file."""
    yield f"{'  ' * depth}{folder.name}/  {first_line(folder / '__init__.py')}"
    for path in modules(folder):
        yield f"{'  ' * (depth + 1)}{path.name}  {first_line(path)}"
    for inner in rooms():
        if inner.parent == folder and inner != PACKAGE:
            yield from lines(inner, depth + 1)


if __name__ == "__main__":
    print("\n".join(lines()))
