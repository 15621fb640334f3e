"""A call of a swapped pipeline in a process of its own; prints what it took beside its plan.

python process_run.py FAMILY
"""

import json
import sys

import torch
from tiny_families import FAMILIES, built, made

from blockswap import swap_pipeline
from blockswap.generate.first_use import take_first_use
from blockswap.store.host_memory import peak_host_bytes, resident_host_bytes, return_freed_memory

LARGER = 40  # the blocks' widest layers, so that weights count beside libraries


def main(name: str) -> None:
    return_freed_memory()
    take_first_use()
    small = built(name)
    made(small, name)  # what libraries take once
    before = resident_host_bytes() or 0
    pipe = built(name)
    for part in ("transformer", "transformer_2"):
        if getattr(pipe, part, None) is not None:
            _widen(getattr(pipe, part))
    with swap_pipeline(pipe, device="cpu") as swap:
        plan = swap.plan_call("a red ball", **{**FAMILIES[name].call, "output_type": "pt"})
        made(pipe, name)
    planned = max(turn.host_bytes or 0 for turn in plan.turns)
    print(json.dumps({"planned": planned, "measured": (peak_host_bytes() or 0) - before}))


def _widen(model: torch.nn.Module) -> None:
    """Every pair of layers of a block that is wide between them is wider."""
    for block in (m for m in model.modules() if hasattr(m, "net")):
        first, last = block.net[0].proj, block.net[2]
        wide = first.out_features * LARGER
        block.net[0].proj = torch.nn.Linear(first.in_features, wide).requires_grad_(False)
        block.net[2] = torch.nn.Linear(wide, last.out_features).requires_grad_(False)


if __name__ == "__main__":
    main(sys.argv[1])
