"""Many forwards of a checkpoint in a process of its own: prints a sample of memory after each.

python run_steady.py CHECKPOINT [FORWARDS CGROUP direct|buffered]

With a cgroup, which the process must have joined, all blocks are streamed from the file; without,
the whole model is loaded by the safetensors library and the digest is all that counts.
"""

import hashlib
import json
import os
import sys
import threading
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))
from run_forward import loaded

from blockswap import BlockSwapArgs, open_transformer
from memory_group import MemoryGroup


def digest_of_a_forward(model: torch.nn.Module) -> str:
    """One token, so that all the time is the disk's."""
    draw = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        (output,) = model(
            hidden_states=torch.randn(1, 16, 1, 2, 2, generator=draw).bfloat16(),
            timestep=torch.tensor([500]),
            encoder_hidden_states=torch.randn(1, 2, 4096, generator=draw).bfloat16(),
            return_dict=False,
        )
    assert output.isfinite().all()
    return hashlib.sha256(output.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def sample(group: MemoryGroup) -> dict[str, int]:
    status = Path("/proc/self/status").read_text()
    return {
        "process": int(status.split("RssAnon:")[1].split()[0]) * 1024,
        "usage": group.usage_bytes,
        **group.by_kind,
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def steady(path: str, forwards: int, group: MemoryGroup, mode: str) -> dict[str, object]:
    if mode == "buffered":
        del os.O_DIRECT
    model = open_transformer(path, BlockSwapArgs(prefetch_blocks=1), device="cpu")
    swap = model.blockswap
    digests, samples = [], []
    for _ in range(forwards):
        digests.append(digest_of_a_forward(model))
        samples.append(sample(group))
    counters, streamed = swap.measured().counters, len(swap.plan.streamed)
    modes = set(swap._streamer._pool.files[0].modes)
    swap.close()
    return {
        "digests": sorted(set(digests)),
        "samples": samples,
        "streamed": streamed,
        "mode": modes.pop(),
        "read_bytes": counters.read_bytes,
    }


def main() -> None:
    path, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    if rest:
        forwards, folder, mode = rest
        told = steady(path, int(forwards), MemoryGroup(Path(folder)), mode)
    else:
        told = {"digests": [digest_of_a_forward(loaded(path))]}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
