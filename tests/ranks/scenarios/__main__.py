"""Runs one scenario as one rank of a group, or forks the ranks of group after group, as it is told.

A forked rank has everything imported already, which is most of what a short scenario takes.
"""

import faulthandler
import gc
import importlib
import json
import os
import sys
import traceback
from collections import ChainMap
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from . import apart, faults, from_file, fsdp, loras, meshes, parallel, parts, sharing, signals

# Slow to import, and imported by scenarios when they need them.
_IMPORTED = (
    "diffusers.hooks",
    "diffusers.models.transformers.transformer_wan_vace",
    "transformers.models.umt5.modeling_umt5",
    "torch.utils.cpp_extension",
    "gguf",
)
_SCENARIOS = ChainMap(
    *map(vars, (apart, faults, from_file, fsdp, loras, meshes, parallel, parts, sharing, signals))
)


def _run(rank: int, count: int, folder: str, scenario: str, options: dict[str, Any]) -> None:
    faulthandler.dump_traceback_later(280, exit=True)
    store = folder if "://" in folder else f"file://{folder}/store"
    backend = os.environ.get("BLOCKSWAP_RANKS_BACKEND", "gloo")
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=count)
    mesh = init_device_mesh("cpu", (count,))
    cases = options["in_turn"] if scenario == "several" else [[scenario, options]]
    found = [_SCENARIOS[name](rank, mesh, **given) for name, given in cases]
    value = found if scenario == "several" else found[0]
    sys.stdout.write("\n" + json.dumps(value) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the group may lack ranks by now: nobody waits for them


def _fork_groups() -> None:
    """A line of input is a group; a line of output are the exit codes of its ranks."""
    for module in _IMPORTED:
        importlib.import_module(module)
    gc.freeze()
    for line in sys.stdin:
        count, folder, scenario, options = json.loads(line)
        ranks = {_forked(rank, count, folder, scenario, options): rank for rank in range(count)}
        codes = [0] * count
        for _ in range(count):
            process, status = os.wait()
            codes[ranks[process]] = os.waitstatus_to_exitcode(status)
        print(json.dumps(codes), flush=True)


def _forked(rank: int, count: int, folder: str, scenario: str, options: dict[str, Any]) -> int:
    process = os.fork()
    if process:
        return process
    try:
        for descriptor, name in ((1, "out"), (2, "errors")):
            file = os.open(f"{folder}/{name}.{rank}", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, descriptor)
        _run(rank, count, folder, scenario, options)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    if sys.argv[1] == "fork":
        _fork_groups()
    else:
        _run(*json.loads(sys.argv[1]))
