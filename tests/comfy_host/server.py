"""One running ComfyUI: its folders, its process, its log, and that it is gone afterwards.

root/custom_nodes/<pack>   links to the packs of the test
root/models, input, output, user
root/log.txt               all that the process printed
"""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .environment import Environment

REPOSITORY = Path(__file__).resolve().parents[2]
PACKS = Path(__file__).resolve().parent / "packs"
TEST_NODES = PACKS / "test_nodes"
# The pack of GGUF models: a stand-in, or the real one where it is at hand.
GGUF = Path(os.environ.get("BLOCKSWAP_GGUF") or PACKS / "gguf_stand_in")
PACK = "wanvideo-blockswap"

START_SECONDS = 120
STOP_SECONDS = 20


class ServerDied(Exception):
    """ComfyUI ended, or did not come up; the text is the end of its log."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start: packs by their folder name in custom_nodes, and the command around it.

    `prefix` goes before the Python (as `/bin/sh -c 'join a cgroup; exec "$@"'`).
    """

    environment: Environment
    root: Path
    packs: Mapping[str, Path] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


def default_packs() -> dict[str, Path]:
    """This repository as it is installed by hand, and the nodes that only tests need."""
    return {PACK: REPOSITORY, "blockswap-test-nodes": TEST_NODES}


def with_gguf() -> dict[str, Path]:
    """The same and a pack of GGUF models."""
    return {**default_packs(), "ComfyUI-GGUF": GGUF}


@dataclass(frozen=True, slots=True)
class Server:
    """A ComfyUI that answers at `url`."""

    url: str
    root: Path
    process: "subprocess.Popen[bytes]"

    @property
    def log(self) -> str:
        return (self.root / "log.txt").read_text(errors="replace")

    @property
    def models(self) -> Path:
        return self.root / "models" / "diffusion_models"


def prepare(root: Path) -> None:
    """The folders of a ComfyUI base directory; those that are there stay as they are."""
    kinds = ("diffusion_models", "loras", "text_encoders", "vae", "clip_vision")
    for folder in (
        "custom_nodes",
        "user",
        "input",
        "output",
        *(f"models/{kind}" for kind in kinds),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)


@contextmanager
def running(launch: Launch) -> Iterator[Server]:
    """Starts ComfyUI, waits until it answers, and ends it with all its children."""
    prepare(launch.root)
    for name, source in launch.packs.items():
        (launch.root / "custom_nodes" / name).symlink_to(source, target_is_directory=True)
    port = _free_port()
    with (launch.root / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            _command(launch, port),
            cwd=launch.environment.core,
            env=_variables(launch),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(url=f"http://127.0.0.1:{port}", root=launch.root, process=process)
    try:
        _wait_until_it_answers(server)
        yield server
    finally:
        _stop(process)


def _command(launch: Launch, port: int) -> list[str]:
    arguments = ["--cpu", "--listen", "127.0.0.1", "--port", str(port), "--disable-api-nodes"]
    arguments += ["--base-directory", str(launch.root)]
    arguments += ["--database-url", f"sqlite:///{launch.root}/user/comfyui.db", *launch.arguments]
    python = str(launch.environment.python)
    # -u: the log is whole when it is read.
    return [*launch.prefix, python, "-u", "main.py", *arguments]


def _variables(launch: Launch) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # PYTHONPATH is left out: the pack must be found through custom_nodes alone.
    return {**inherited, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **launch.variables}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise ServerDied(f"ended with {server.process.returncode}:\n{server.log[-3000:]}")
        try:
            with urllib.request.urlopen(f"{server.url}/system_stats", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise ServerDied(f"did not answer in {START_SECONDS} s:\n{server.log[-3000:]}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """The whole session of the process: a wrapper's child must not outlive it."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
        try:
            process.wait(timeout=STOP_SECONDS)
            return
        except subprocess.TimeoutExpired:
            continue
