"""A process that runs one method: told by lines of JSON on stdin, answers by lines on stdout.

python -m benchmarks.disk_tier.how.child prepare|run METHOD FOLDER
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.disk_tier.how.folder import Folder, read_model
from benchmarks.disk_tier.how.methods import METHODS
from benchmarks.disk_tier.what import THREADS, Clip
from benchmarks.shared.forward import inputs_of, timed


def read_bytes() -> int:
    """What this process has had read from the disk so far, page cache misses included."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def measured(forward: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """One forward: seconds, bytes read, and a digest of what came out."""
    read = read_bytes()
    seconds, output = timed(forward, inputs)
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
        clip = Clip(**json.loads(line))
        inputs = inputs_of((1, *clip.latent), clip.text, dtype, seed=clip.tokens)
        told = measured(forward, inputs)
        print(json.dumps(told), file=answers)


if __name__ == "__main__":
    main(sys.argv[1:])
