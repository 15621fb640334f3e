"""A process that runs one method: told by lines of JSON on stdin, answers by lines on stdout.

python -m benchmarks.disk.child prepare|run METHOD FOLDER
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.disk.folder import Folder, read_model
from benchmarks.disk.methods import METHODS
from benchmarks.disk.workload import Clip

THREADS = 2


def read_bytes() -> int:
    """What this process has had read from the disk so far, page cache misses included."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def inputs_of(clip: Clip, dtype: torch.dtype) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(clip.tokens)
    height, width = clip.latent
    return {
        "hidden_states": torch.randn(1, 16, 1, height, width, generator=draw).to(dtype),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, clip.text, 4096, generator=draw).to(dtype),
        "return_dict": False,
    }


def measured(forward: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """One forward: seconds, bytes read, and a digest of what came out."""
    read, began = read_bytes(), time.perf_counter()
    with torch.inference_mode():
        (output,) = forward(**inputs)
    seconds = time.perf_counter() - began
    digest = hashlib.sha256(output.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    return {"seconds": seconds, "read_bytes": read_bytes() - read, "digest": digest}


def main(arguments: list[str]) -> None:
    action, name, root = arguments
    method, folder = METHODS[name], Folder(Path(root))
    # What libraries print must not come between the lines of the protocol.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(THREADS)
    if action == "prepare":
        if method.prepare is not None:
            method.prepare(folder)
        return
    dtype = getattr(torch, read_model(folder.root).dtype)
    forward = method.open(folder)
    print(json.dumps({"opened": True}), file=answers)
    for line in sys.stdin:
        told = measured(forward, inputs_of(Clip(**json.loads(line)), dtype))
        print(json.dumps(told), file=answers)


if __name__ == "__main__":
    main(sys.argv[1:])
