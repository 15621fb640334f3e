"""A run in a process of its own that is killed, or interrupted, at a point that is named.

Called as a script: folder, output, device, point, signal, resume. Prints the frames' digest.
"""

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any


def main(folder: str, output: str, kind: str, point: str, sent: str, resume: str) -> None:
    from whole import request_for

    from blockswap.generate.run import make_videos, prepare

    request = request_for(kind, Path(folder).parent)
    job, plan = prepare(folder, request, output, device="cpu")
    phase, _, number = point.partition(":")
    if phase == "read":
        _kill_when_reading(number, sent)

    def progress(name: str, done: int, _total: int) -> None:
        if name == phase and done == int(number):
            os.kill(os.getpid(), getattr(signal, sent))

    digests: list[str] = []

    def on_frames(_clip: int, frames: Any) -> None:
        digests.append(hashlib.sha256(frames.tobytes()).hexdigest())

    made = make_videos(job, plan, resume=resume == "resume", progress=progress, on_frames=on_frames)
    print("made", digests[0], made.clips[0].steps_computed, made.encoded)


def _kill_when_reading(what: str, sent: str) -> None:
    """In the encoder or at the switch: before a model that is named computes for the first time."""
    import torch

    def hook(module: torch.nn.Module, *_: Any) -> None:
        if type(module).__name__ == what or getattr(module, "name_of_test", None) == what:
            os.kill(os.getpid(), getattr(signal, sent))

    torch.nn.modules.module.register_module_forward_pre_hook(hook)


if __name__ == "__main__":
    main(*sys.argv[1:])
