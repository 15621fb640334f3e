"""Builds the C++ extension on first use and loads it, once per process."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

MODULE_NAME = "_simaccel"
SOURCE_FOLDER = Path(__file__).parent / "csrc"
CACHE_VARIABLE = "SIMACCEL_BUILD_DIR"
COMPILE_FLAGS = ["-O1", "-fvisibility=hidden", "-Wall"]

# Compiled as two units: most of the time goes into torch's headers, read once per unit.
UNITS = {
    "device": (
        "allocators",
        "bindings",
        "clock",
        "generator",
        "guard_hooks",
        "memory",
        "race_detector",
        "state",
        "streams_events",
    ),
    "operators": (
        "autocast",
        "copies",
        "fallback",
        "host_access",
        "kernels",
        "op_traits",
        "shapes",
        "tensors",
    ),
}


class CannotBuild(RuntimeError):
    """The extension cannot be built here; the message says why."""


def load() -> ModuleType:
    """Returns the loaded extension, building it if these sources were not built for this torch.

    Two processes may call this at once: the second waits for the first and uses its build.
    Raises CannotBuild where there is no compiler, and RuntimeError if the compiler fails.
    """
    if MODULE_NAME in sys.modules:
        return sys.modules[MODULE_NAME]
    library = library_path()
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with open(library.parent / "simaccel.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel even if we are killed
            if not library.exists():
                _build(library)
    return _import(library)


def library_path() -> Path:
    """One file per (sources, torch, Python), so that a stale build is never loaded."""
    root = Path(os.environ.get(CACHE_VARIABLE, Path(__file__).parent / ".build"))
    digest = hashlib.sha256(repr(COMPILE_FLAGS).encode())
    for path in sorted(SOURCE_FOLDER.glob("*.[ch]*")):
        digest.update(path.name.encode() + path.read_bytes())
    folder = f"torch{torch.__version__}-py{sys.version_info.major}{sys.version_info.minor}"
    return root / folder / f"{MODULE_NAME}-{digest.hexdigest()[:16]}.so"


def _build(library: Path) -> None:
    """Compiles into `work/` (incrementally, by ninja) and moves the result to its final name."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise CannotBuild("no C++ compiler found: install g++ or set CXX")
    if shutil.which("ninja", path=_search_path()) is None:
        raise CannotBuild("ninja not found: pip install ninja")
    work = library.parent / "work"
    work.mkdir(exist_ok=True)
    (work / "lock").unlink(missing_ok=True)  # torch's own lock, left by a killed build
    arguments = {
        "name": MODULE_NAME,
        "sources": [_write_unit(work, *unit) for unit in UNITS.items()],
        "extra_include_paths": [str(SOURCE_FOLDER)],
        "extra_cflags": COMPILE_FLAGS,
        "build_directory": str(work),
    }
    # torch's load() also imports what it built; a child process keeps that out of this one.
    script = f"from torch.utils import cpp_extension\ncpp_extension.load(**{arguments!r})"
    environment = {**os.environ, "PATH": _search_path()}
    built = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        check=False,
    )
    if built.returncode != 0:
        raise RuntimeError(f"building the simulated accelerator failed:\n{built.stdout[-12000:]}")
    shutil.copy2(work / f"{MODULE_NAME}.so", library.with_suffix(".tmp"))
    library.with_suffix(".tmp").rename(library)


def _write_unit(work: Path, name: str, parts: Sequence[str]) -> str:
    path = work / f"unit_{name}.cpp"
    text = "".join(f'#include "{part}.cpp"\n' for part in parts)
    if not path.exists() or path.read_text() != text:  # an old file stays old for ninja
        path.write_text(text)
    return str(path)


def _search_path() -> str:
    """PATH, and the folder of this Python, where pip puts ninja."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _import(library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(MODULE_NAME, library)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{library} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[MODULE_NAME] = module
    return module
