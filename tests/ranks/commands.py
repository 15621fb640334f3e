"""Run by torchrun: `probe`, `plan` and `demo`, one after the other, in each rank's process."""

import faulthandler
import functools
import os
import sys

import torch.distributed as dist
from cases import fresh, metadata
from safetensors.torch import save_file

from blockswap.cli.app import app
from blockswap.probe import measure
from blockswap.probe.values import Limits

SMALL = Limits(
    compute_seconds=0.1,
    disk_seconds=0.1,
    width=128,
    tokens=(16,),
    copy_bytes=1 << 20,
    scratch_bytes=1 << 20,
    readers=(1,),
    chunks=(1 << 20,),
)


def main(folder: str) -> None:
    faulthandler.dump_traceback_later(150, exit=True)
    measure.Limits = functools.partial(lambda: SMALL)  # type: ignore[misc, assignment]
    dist.init_process_group("gloo")  # once: a second group of one launch finds the first one's keys
    if os.environ["RANK"] == "0":  # the others wait for it in the first command
        save_file(fresh("original").state_dict(), f"{folder}/m.safetensors", metadata("original"))
    clip = ["--size", "64x64", "--frames", "5", "--vae-tiled"]
    for command in (
        ["probe", "--device", "cpu", "--folder", folder],
        ["plan", "--model", f"{folder}/m.safetensors", *clip, "--blocks-to-swap", "2"],
        ["demo", "--steps", "1", "--out", f"{folder}/demo"],
    ):
        try:
            app(command, standalone_mode=False)
        except SystemExit as end:
            if end.code not in (0, 1):
                raise
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
