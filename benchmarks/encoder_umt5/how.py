"""Encodes the prompt, in a process of its own inside a memory cgroup; prints one JSON object.

python -m benchmarks.encoder_umt5.how FOLDER CGROUP OUTPUT
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.encoder_umt5.what import ENCODES, prompt
from blockswap import open_text_encoder
from memory_group import MemoryGroup


def measure(folder: str, group: MemoryGroup, output: str) -> dict[str, Any]:
    began = time.perf_counter()
    model: Any = open_text_encoder(folder, {"blocks_to_swap": 24}, device="cpu")
    opening, seconds = time.perf_counter() - began, []
    for _ in range(ENCODES):
        began = time.perf_counter()
        with torch.inference_mode():
            encoded = model(**prompt()).last_hidden_state
        seconds.append(time.perf_counter() - began)
    save_file({"encoded": encoded.contiguous()}, output)
    counters, plan = model.blockswap.measured().counters, model.blockswap.plan
    return {
        "opening": opening,
        "seconds": seconds,
        "read_bytes": counters.read_bytes,
        "planned_read_bytes": plan.read_bytes_per_forward,
        "table_rows": counters.looked_up_rows,
        "table_bytes": counters.looked_up_bytes,
        "weights_and_slots": plan.device_bytes,
        "memory": {"peak": group.peak_bytes, **group.by_kind},
        "times_at_limit": group.times_at_limit,
        "sentences": [*plan.sentences, *model.blockswap.measured().sentences],
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], MemoryGroup(Path(sys.argv[2])), sys.argv[3])))
