"""Prints the host memory that a model takes under dynamic VRAM: the host alone, or with the node.

Run as a program: `host_bytes.py host|node CHECKPOINT`. Counted are anonymous pages, pinned
ones among them, from before the model was loaded until it has run with three sets of arguments;
pages of files, and what the simulated accelerator keeps on its device, are not.
"""

import gc
import os
import re
import sys
from pathlib import Path
from typing import Any

ASKED: list[dict[str, Any]] = [{"blocks": "0-49"}, {"blocks_to_swap": 55}, {"blocks": "3-59"}]


def import_comfyui() -> None:
    """ComfyUI reads its options from the command line while it is imported."""
    sys.path[:0] = [str(Path(__file__).parents[1]), os.environ["BLOCKSWAP_COMFYUI"]]
    given, sys.argv = sys.argv, ["main.py", "--cpu", "--use-pytorch-cross-attention"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args

    assert comfy.cli_args.args.cpu
    sys.argv = given


def anonymous_bytes() -> int:
    """Of this process, less what stands in for the device's memory."""
    import simaccel

    gc.collect()
    said = Path("/proc/self/smaps").read_text(encoding="utf-8")
    kilobytes = sum(map(int, re.findall(r"^Anonymous: +([0-9]+) kB", said, re.MULTILINE)))
    return kilobytes * 1024 - simaccel.counters().device_bytes


def models(way: str, path: str) -> Any:
    import comfy.sd

    from blockswap import BlockSwapArgs
    from blockswap.nodes.clone.patcher import swap_on_clone
    from blockswap.nodes.runs.wish import Wish

    plain = comfy.sd.load_diffusion_model(path)
    for args in ASKED:
        yield plain if way == "host" else swap_on_clone(plain, Wish(BlockSwapArgs(**args)))


def main(way: str, path: str) -> None:
    import_comfyui()
    import dynamic
    import pytest
    import simulated
    import tiny
    import torch

    import simaccel

    torch.set_num_threads(1)
    assert simaccel.unavailable_reason() is None
    simaccel.configure(mode="eager", races="raise", poison=True)
    simaccel.reset()
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        simulated.point_at(torch.device("sim", 0), patch)
        dynamic.switch_on(patch)
        tiny.sample(tiny.model("t2v"), steps=1)  # what is made once
        before = anonymous_bytes()
        for model in models(way, path):
            tiny.sample(model, steps=1)
        print(anonymous_bytes() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
