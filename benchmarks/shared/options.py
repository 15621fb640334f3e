"""Owns how a benchmark presents its options: by its package's name and first line."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def parser_of(package: str) -> argparse.ArgumentParser:
    """A parser for `python -m PACKAGE`, told by the first line of the package's docstring."""
    first, _, _ = (sys.modules[package].__doc__ or "").partition("\n")
    return argparse.ArgumentParser(prog=f"python -m {package}", description=first)


def takes_no_options(package: str) -> None:
    """`--help` says what it is, and anything else is refused, before something is measured."""
    parser_of(package).parse_args()


def folder_of(package: str, arguments: Sequence[str]) -> Path | None:
    """The FOLDER for large files that a benchmark takes; None for a temporary one."""
    parser = parser_of(package)
    parser.add_argument("folder", nargs="?", type=Path, help="where large files go and stay")
    folder: Path | None = parser.parse_args(arguments).folder
    return folder
