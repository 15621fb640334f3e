"""Compiled blocks of every format and with LoRAs: one graph a kind of block, and none after it.

Nothing is compiled anew for another block, step, strength or file of a LoRA, and no graph breaks
inside a block (`fullgraph`). The unswapped model, compiled in the same way, has as many graphs.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from files import Shelf, build, forward
from merged import LoraFiles, merge_into
from test_matrix import ALL, DEVICES, FAMILIES, STORES
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from blockswap import BlockSwapArgs, open_transformer
from pairs import pairwise

BF16 = torch.bfloat16
# Blocks of VACE are two kinds beside the model's own: the first of them has an input projection.
KINDS = {"t2v": 1, "i2v": 1, "vace": 3}
# Which LoRAs a clip begins with, and which files and strengths come then.
Asked = tuple[tuple[str, float], ...]
LORAS: dict[str, tuple[Asked, ...]] = {
    "none": ((), ()),
    "strengths": ((("dora", 0.8), ("lora", -0.4)), (("dora", 0.8), ("lora", 0.0))),
    "files": ((("lora", -0.4),), (("other", 0.6), ("lora", -0.4)), ()),
}


def _each(model: Any, backend: Any) -> None:
    for name, blocks in model.named_children():
        for block in blocks if name.endswith("blocks") else ():
            block.compile(backend=backend, fullgraph=True)


def _repeated(model: Any, backend: Any) -> None:
    model.compile_repeated_blocks(backend=backend, fullgraph=True)


def _one(model: Any, backend: Any) -> None:
    model.blocks[1].compile(backend=backend, fullgraph=True)


HOW: dict[str, Callable[[Any, Any], None]] = {
    "each block": _each, "repeated blocks": _repeated, "one block": _one, "before": _repeated,
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("fresh_compiler")


@dataclass(frozen=True)
class Case:
    """What is compiled, how, and what is asked of it."""

    name: str
    kind: str
    how: str
    lora: str
    store: str

    def check(
        self, device: torch.device, whole: Any, backend: Any, shelf: Shelf, files: LoraFiles
    ) -> int:
        """Compares the compiled streamed model with `whole`; returns how many graphs it has."""
        compiled, kind, skeleton = HOW[self.how], self.kind, None
        if self.how == "before":
            with init_empty_weights(include_buffers=False):
                skeleton = build(kind)
            compiled(skeleton, backend)
        args = BlockSwapArgs(blocks_to_swap=3, **STORES[self.store])
        opened: Any = open_transformer(
            shelf.file(self.name, kind), args, device=device, skeleton=skeleton, dtype=BF16
        )
        if skeleton is None:
            compiled(opened, backend)
        with opened.blockswap as swap:
            for asked in LORAS[self.lora]:
                names, strengths = [name for name, _ in asked], [number for _, number in asked]
                swap.set_loras([(files(kind)[name][0], number) for name, number in asked])
                merge_into(whole, shelf.stored(self.name, kind), names, strengths)
                for _ in range(2):
                    want = forward(whole, kind, device)
                    assert torch.equal(forward(opened, kind, device), want), asked
        return int(backend.frame_count)


def _rows() -> list[Any]:
    """(device, case): of what does not concern the compiler each value comes up in turn."""
    axes: dict[str, Any] = {"lora": tuple(LORAS), "how": tuple(HOW), "device": DEVICES}
    rows = pairwise(**axes)
    formats = itertools.cycle([next(iter(names)) for names in FAMILIES.values()])
    if ALL:
        rows = [
            dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
        ]
        rows = [row for row in rows for _ in ALL]
        formats = itertools.cycle(ALL)
    stores = itertools.cycle(STORES)
    return [(row["device"], Case(next(formats), "t2v", row["how"], row["lora"],
                                 "disk" if row["device"] == "cpu" else next(stores)))
            for row in rows]  # fmt: skip


OTHERS = [("sim-lazy", Case("gguf-mixed", kind, "repeated blocks", "strengths", "both"))
          for kind in KINDS if kind != "t2v"]  # fmt: skip


@pytest.mark.parametrize(("device", "case"), _rows() + OTHERS, indirect=["device"], ids=str)
def test_a_graph_for_each_kind_of_block(
    case: Case, device: torch.device, packed_files: Shelf, lora_files: LoraFiles
) -> None:
    whole = copy.deepcopy(packed_files.plain(case.name, case.kind, device))
    graphs = case.check(device, whole, CompileCounter(), packed_files, lora_files)
    assert graphs == KINDS[case.kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_unswapped_model_has_as_many(kind: str, packed_files: Shelf) -> None:
    counter = CompileCounter()
    whole = copy.deepcopy(packed_files.plain("bf16", kind, torch.device("cpu")))
    _repeated(whole, counter)
    forward(whole, kind, torch.device("cpu"))
    assert counter.frame_count == KINDS[kind]


def test_compiled_by_inductor(packed_files: Shelf, lora_files: LoraFiles) -> None:
    case, cpu = Case("gguf-Q4_K", "t2v", "repeated blocks", "files", "disk"), torch.device("cpu")
    whole = copy.deepcopy(packed_files.plain(case.name, case.kind, cpu))
    _repeated(whole, "inductor")
    backend = CompileCounterWithBackend("inductor")
    assert case.check(cpu, whole, backend, packed_files, lora_files) == 1
