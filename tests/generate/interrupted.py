"""A run in a forked process of its own that is killed, or interrupted, at a point that is named."""

import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import torch
from single_files import lora
from whole import request_for

from blockswap.generate import VideoRequest
from blockswap.generate.run import make_videos, prepare

LORAS = (("lora_high", 1), ("lora_low", 2))


def run_apart(folder: Path, output: Path, kind: str, point: str, sent: str) -> int | None:
    """A run that `sent` ends at `point` ("phase:number", or "read:class"); its exit code.

    A point "" ends nothing: an unfinished run is gone on with, and `told(output)` says what it did.
    """
    process = multiprocessing.get_context("fork").Process(
        target=_run, args=(folder, output, kind, point, sent)
    )
    process.start()
    process.join()
    return process.exitcode


def request_of(folder: Path, kind: str, place: Path) -> VideoRequest:
    """The request of that kind; of single files with the LoRAs that lie beside them."""
    if kind != "files":
        return request_for(kind, place)
    high, low = (((lora(folder / f"{name}.safetensors", seed), 1.0),) for name, seed in LORAS)
    return request_for("t2v", place, loras_high=high, loras_low=low)


def told(output: Path) -> tuple[str, int, int]:
    """Digest of the frames, steps computed, texts encoded."""
    digest, steps, texts = json.loads(output.with_suffix(".json").read_text())
    return digest, steps, texts


def digest_of(frames: Any) -> str:
    return hashlib.sha256(frames.tobytes()).hexdigest()


def _run(folder: Path, output: Path, kind: str, point: str, sent: str) -> None:
    # Where tests run in the background a shell has them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["BLOCKSWAP_CACHE"] = str(output.parent / "cache")
    job, plan = prepare(folder, request_of(folder, kind, output.parent), output, device="cpu")
    phase, _, number = point.partition(":")
    if phase == "read":
        _end_when_computing(number, sent)

    def progress(name: str, done: int, _total: int) -> None:
        if name == phase and done == int(number):
            os.kill(os.getpid(), getattr(signal, sent))

    digests: list[str] = []
    made = make_videos(
        job,
        plan,
        resume=not point,
        progress=progress,
        on_frames=lambda _, frames: digests.append(digest_of(frames)),
    )
    found = [digests[0], made.clips[0].steps_computed, made.encoded]
    output.with_suffix(".json").write_text(json.dumps(found))


def _end_when_computing(what: str, sent: str) -> None:
    """Before a module of the class that is named computes for the first time."""

    def hook(module: torch.nn.Module, *_: Any) -> None:
        if type(module).__name__ == what:
            os.kill(os.getpid(), getattr(signal, sent))

    torch.nn.modules.module.register_module_forward_pre_hook(hook)
