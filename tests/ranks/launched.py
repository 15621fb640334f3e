"""Run by torchrun: a model on all ranks, of which one is killed once, or that run until ended."""

import faulthandler
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import forward, fresh, metadata, skeleton
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh

import blockswap

IN_FILE = {"blocks_to_swap": 4, "prefetch_blocks": 1, "ram_budget": 0}


def main(folder: str, how: str) -> None:
    """`how`: "restarted" (rank 1 is killed in its first life) or "ended"."""
    faulthandler.dump_traceback_later(120, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, life = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    path, here = f"{folder}/m.safetensors", torch.device("cpu")
    if rank == 0:
        save_file(fresh("mini").state_dict(), path, metadata("mini"))
    dist.barrier()
    mesh = init_device_mesh("cpu", (2,))
    model: Any = blockswap.open_transformer(
        path, IN_FILE, device=here, skeleton=skeleton("mini"), mesh=mesh
    )
    maps = Path("/proc/self/maps").read_text().splitlines()
    segments = [line.split()[4] for line in maps if "memfd:blockswap" in line]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted, number = forward(fresh("mini"), "mini", here), 0
        while how == "ended" or number < 3:
            if how == "restarted" and rank == 1 and life == 0 and number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            assert torch.equal(forward(model, "mini", here), wanted)
            number += 1
            if number == 1:
                # Whole at once: somebody waits for it.
                part = Path(f"{folder}/part.{rank}")
                part.write_text(" ".join([str(os.getpid()), *segments]))
                part.rename(f"{folder}/{how}.{life}.{rank}")
    model.blockswap.close()
    Path(f"{folder}/done.{life}.{rank}").touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
