"""Owns how a benchmark presents its options: by its package's name and first line."""

import argparse
import sys


def parser_of(package: str) -> argparse.ArgumentParser:
    """A parser for `python -m PACKAGE`, told by the first line of the package's docstring."""
    first, _, _ = (sys.modules[package].__doc__ or "").partition("\n")
    return argparse.ArgumentParser(prog=f"python -m {package}", description=first)
