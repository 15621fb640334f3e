"""Runs one scenario as one rank of a group, and prints what it returned."""

import faulthandler
import json
import os
import sys
from collections import ChainMap

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from . import faults, from_file, fsdp, parallel, parts, sharing

_SCENARIOS = ChainMap(*map(vars, (faults, from_file, fsdp, parallel, parts, sharing)))


def _main() -> None:
    faulthandler.dump_traceback_later(280, exit=True)
    rank, count, folder, scenario, options = json.loads(sys.argv[1])
    store = folder if "://" in folder else f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count)
    mesh = init_device_mesh("cpu", (count,))
    value = _SCENARIOS[scenario](rank, mesh, **options)
    sys.stdout.write("\n" + json.dumps(value) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the group may lack ranks by now: nobody waits for them


if __name__ == "__main__":
    _main()
