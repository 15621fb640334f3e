"""Formats x models x LoRAs x callers x stores x devices: streamed, each equals the unswapped model.

The unswapped model has the weights that the format's own package dequantises, LoRAs merged by
PEFT's layers in fp32. CI runs a choice in which every decoder meets every value of each axis, and
all formats occur; `make test-formats` runs all combinations (BLOCKSWAP_FORMATS=all, or
names of formats).
"""

import copy
import gc
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from callers import CALLERS, STEPS, steps
from files import MODELS, NAMES, Shelf, build, forward
from gguf import GGMLQuantizationType
from merged import LORAS, LoraFiles, merge_into
from packed import gguf_blocks
from safetensors.torch import load_file, save_file

from blockswap import BlockSwapArgs, open_experts, open_transformer, swap_blocks
from blockswap.errors import BlockSwapError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.formats import unpacked
from blockswap.layout.header import read_header
from blockswap.swap.entry.checkpoint_file import plan_transformer
from engine_seams import wait_for_readers
from pairs import pairwise
from skipping import unhook

STORES: dict[str, dict[str, Any]] = {
    "disk": {},
    "ram": {"ram_budget": "1GiB"},
    "both": {"ram_budget": "3MiB"},
}
DEVICES = ("cpu", "sim-eager", "sim-lazy")
# One for each decoder: formats whose arithmetic is one are tried in turn.
FAMILIES = {
    "none": ("bf16",),
    "cast": ("fp32 shards", "fp8"),
    "scaled": ("fp8-scale_weight", "fp8-weight_scale-1", "fp8-scale-rows", "fp8-rows-flat",
               "comfy-fp8"),
    "grouped": ("fp8-groups", "fp8-blocks"),
    "int8": ("comfy-int8", "comfy-int8-rotated", "quanto-int8"),
    "tiles": ("comfy-mxfp8", "comfy-nvfp4"),
    "gguf": tuple(name for name in NAMES if name.startswith("gguf-")),
}  # fmt: skip
TIERS = {"disk": {"disk"}, "ram": {"ram"}, "both": {"ram", "disk"}}
Merge = Callable[[tuple[str, ...]], None]
STREAMED: dict[str, dict[str, Any]] = {
    "all": {"blocks_to_swap": 3, "prefetch_blocks": 1},
    "some": {"blocks": "0,2", "prefetch_blocks": 0},
}
PLANNED = STREAMED["all"] | {"vace_blocks_to_swap": 2}
AXES: dict[str, Any] = dict(
    model=tuple(MODELS), lora=tuple(LORAS), caller=tuple(CALLERS), store=tuple(STORES),
    streamed=tuple(STREAMED), device=DEVICES,
)  # fmt: skip
_ASKED = os.environ.get("BLOCKSWAP_FORMATS", "")
ALL = NAMES if _ASKED == "all" else tuple(filter(None, _ASKED.split(",")))
# A decoder each; with which LoRAs bytes are counted.
COUNTED = ("fp8", "fp8-scale_weight", "fp8-groups", "comfy-int8-rotated", "comfy-mxfp8",
           "comfy-nvfp4", "gguf-Q8_0", "gguf-Q6_K", "gguf-mixed")  # fmt: skip


def _rows() -> list[dict[str, str]]:
    """What is run; of all combinations those that differ in their caller share an opened model."""
    if ALL:
        axes = AXES | {"caller": ("each",), "streamed": ("",)}
        rows = [dict(zip(("name", *axes), values, strict=True))
                for values in itertools.product(ALL, *axes.values())]  # fmt: skip
        # On the CPU blocks come from the file, whatever the store.
        rows = [row for row in rows if row["device"] != "cpu" or row["store"] == "disk"]
        which = itertools.cycle(STREAMED)
        return [row | {"streamed": next(which)} for row in rows]
    left = {family: itertools.cycle(names) for family, names in FAMILIES.items()}
    chosen = pairwise(family=tuple(FAMILIES), **AXES)
    rows = [{"name": next(left[row.pop("family")]), **row} for row in chosen]
    return rows + _each_format({row["name"] for row in rows})


def _each_format(met: set[str]) -> list[dict[str, str]]:
    """A row for each format that the choice has left out."""
    left = [name for name in NAMES if name not in met]
    axes = {axis: itertools.cycle(values) for axis, values in AXES.items()}
    return [{"name": name, **{axis: next(found) for axis, found in axes.items()}} for name in left]


def _cases() -> list[Any]:
    """(case, device) of each row; those with one reference run on one worker."""
    return [
        pytest.param(
            row,
            row["device"],
            id="-".join(row.values()),
            marks=pytest.mark.xdist_group(f"{row['name']}-{row['model']}"),
        )
        for row in _rows()
    ]


def _planned() -> list[tuple[str, str, str]]:
    if ALL:
        # In bf16 all blocks of the vendor's shards take less RAM than two of them do in staging.
        every = set(itertools.product(ALL, STORES, ("none", "two")))
        return sorted(every - {("fp32 shards", "both", "none")})
    loras = itertools.cycle(("two", "none"))
    return list(zip(COUNTED, itertools.cycle(STORES), loras, strict=False))


def _args(case: dict[str, str], device: torch.device) -> BlockSwapArgs:
    # On the CPU blocks come from the file; a RAM budget would be one for everything.
    store = {} if device.type == "cpu" else STORES[case["store"]]
    args = store | STREAMED[case["streamed"]]
    if case["model"] == "vace" and case["streamed"] == "all":
        args = args | {"vace_blocks_to_swap": 2}
    return BlockSwapArgs(**args)


def _dtype(name: str) -> torch.dtype | None:
    """The vendors' shards are in fp32, in which nobody computes; any other file says its own."""
    return torch.bfloat16 if name == "fp32 shards" else None


@dataclass(frozen=True)
class Clip:
    """What a model is asked for; in the middle its LoRAs may change."""

    kind: str
    caller: str
    loras: tuple[tuple[str, ...], ...]

    def outputs(self, model: Any, device: torch.device, merge: Merge) -> list[torch.Tensor]:
        """`merge(names)` adds LoRAs to the model from then on."""
        (first, later), half = self.loras, STEPS // 2
        merge(first)
        hook = CALLERS[self.caller]
        if hook is not None:
            hook(model, STEPS)
        found = list(steps(model, self.kind, device, self.caller, half, 0))
        if later != first:
            merge(later)
        found += steps(model, self.kind, device, self.caller, STEPS - half, half)
        unhook(model)
        return found


_EXPECTED: dict[tuple[str, str, Clip], list[torch.Tensor]] = {}


def _expected(shelf: Shelf, name: str, clip: Clip, device: torch.device) -> list[torch.Tensor]:
    """Outputs of the unswapped model, the same for all that is streamed otherwise."""
    asked = name, str(device), clip
    if asked not in _EXPECTED:
        whole = copy.deepcopy(shelf.plain(name, clip.kind, device))
        stored = shelf.stored(name, clip.kind)
        outputs = clip.outputs(whole, device, lambda names: merge_into(whole, stored, names))
        assert all(torch.isfinite(output.float()).all() for output in outputs)
        _EXPECTED[asked] = outputs
    return _EXPECTED[asked]


@pytest.mark.parametrize(("case", "device"), _cases(), indirect=["device"])
def test_streamed_as_unswapped(
    case: dict[str, str], device: torch.device, packed_files: Shelf, lora_files: LoraFiles
) -> None:
    name, model, now = case["name"], case["model"], LORAS[case["lora"]][0]
    files = lora_files(model)
    opened: Any = open_transformer(
        packed_files.file(name, model),
        _args(case, device),
        device=device,
        dtype=_dtype(name),
        loras=[files[lora] for lora in now],
    )
    with opened.blockswap as swap:

        def merge(names: tuple[str, ...]) -> None:
            nonlocal now
            if names != now:
                swap.set_loras([files[lora] for lora in names])
            now = names

        for number, caller in enumerate(CALLERS if ALL else (case["caller"],)):
            # Every other clip changes them back.
            clip = Clip(model, caller, LORAS[case["lora"]][:: -1 if number % 2 else 1])
            expected = _expected(packed_files, name, clip, device)
            found = clip.outputs(opened, device, merge)
            assert list(map(torch.equal, found, expected)) == [True] * len(expected), caller
        moved = swap.measured().counters
        assert moved.read_bytes if device.type == "cpu" else moved.copied_bytes


@pytest.mark.parametrize(("name", "store", "lora"), _planned())
def test_what_moves_and_what_is_held_is_planned_to_the_byte(
    name: str, store: str, lora: str, sim: Any, sim_device: torch.device, packed_files: Shelf,
    lora_files: LoraFiles,
) -> None:  # fmt: skip
    path = packed_files.file(name, "vace")
    files = lora_files("vace")
    loras = [files[each] for each in LORAS[lora][0]]
    args = BlockSwapArgs(**_budget(name, store, path, sim_device, loras), **PLANNED)

    def taken_by(model: Any) -> tuple[int, int]:
        """Bytes above what is held, and allocations, of a forward in the steady state."""
        forward(model, "vace", sim_device)
        _settle(model)
        torch.accelerator.reset_peak_memory_stats()
        start = sim.counters()
        forward(model, "vace", sim_device)
        _settle(model)
        end = sim.counters()
        peak = torch.accelerator.max_memory_allocated() - start.device_bytes
        return peak, end.device_allocations - start.device_allocations

    # The same file without anything to decode, streamed in the same way.
    dtype = _dtype(name)
    plain: Any = open_transformer(path.parent / "vace-plain", args, device=sim_device, dtype=dtype)
    activations = taken_by(plain)
    plain.blockswap.close()
    del plain
    gc.collect()
    sim.reset()
    base = sim.counters().device_bytes
    opened: Any = open_transformer(path, args, device=sim_device, dtype=dtype, loras=loras)
    with opened.blockswap as swap:
        now, plan = sim.counters(), swap.plan
        assert {unit.tier for unit in plan.units} - {"resident"} == TIERS[store]
        assert now.device_bytes - base == plan.device_bytes
        assert now.device_bytes_peak - base == plan.device_bytes, "more while opening"
        assert taken_by(opened) == activations, "decoding takes the plan's buffer and nothing else"
        before, read = sim.counters(), swap.measured().counters
        for _ in range(3):
            forward(opened, "vace", sim_device)
        _settle(opened)
        after, mine = sim.counters(), swap.measured().counters
        copied, was_read = mine.copied_bytes - read.copied_bytes, mine.read_bytes - read.read_bytes
        # How far the next forward's first units are when one ends is a matter of time.
        ahead = plan.slots * plan.slot_bytes
        assert abs(copied - 3 * plan.copied_bytes_per_forward) <= ahead
        assert abs(was_read - 3 * plan.read_bytes_per_forward) <= 2 * ahead
        assert abs(after.h2d_bytes - before.h2d_bytes - copied) < 3 * plan.slot_bytes
        # Sectors of the file are read and copied whole; RAM has the arrays alone.
        stored = _stored_bytes(path) + sum(_factor_bytes(lora[0]) for lora in loras)
        assert plan.copied_bytes_per_forward <= stored + 5 * 60 * 4096
        # What computes in fewer bytes than it is stored in rests in RAM so.
        assert stored <= plan.copied_bytes_per_forward or name == "fp32 shards"
    assert sim.counters().device_bytes == base


def _budget(name: str, store: str, path: Path, device: torch.device, loras: Any) -> dict[str, Any]:
    """For both tiers: room for the staging buffers and about half of the blocks beside them."""
    if store != "both":
        return STORES[store]
    plan = plan_transformer(
        path, BlockSwapArgs(**PLANNED), device=device, dtype=_dtype(name), loras=loras
    )
    staging = plan.staging_buffers * plan.staging_bytes
    in_ram = plan.slot_bytes // (2 if name == "fp32 shards" else 1)
    return {"ram_budget": staging + in_ram + in_ram // 2}


def _settle(model: Any) -> None:
    """Copies that readers enqueue count as well: until all of them are under way, and over."""
    wait_for_readers(model.blockswap._streamer._pool)
    torch.accelerator.synchronize()


def _stored_bytes(path: Path) -> int:
    """Bytes of the blocks as they stand in the file."""
    tensors = unpacked(open_checkpoint(path)).tensors
    return sum(t.nbytes for key, t in tensors.items() if "blocks." in key)


def _factor_bytes(path: Path) -> int:
    """Bytes of a LoRA's factors for the blocks."""
    header = read_header(path)
    return sum(tensor.nbytes for tensor in header.tensors if "blocks." in tensor.name)


def test_two_experts_of_different_formats_share_a_pool(
    device: torch.device, packed_files: Shelf
) -> None:
    names = ("gguf-Q4_K", "fp8-scale_weight")
    args = BlockSwapArgs(blocks_to_swap=3, prefetch_blocks=1)
    paths = [packed_files.file(name, "t2v") for name in names]
    experts: Any = open_experts(paths, args, device=device)
    try:
        for _ in range(2):
            for name, expert in zip(names, experts, strict=True):
                expected = forward(packed_files.plain(name, "t2v", device), "t2v", device)
                assert torch.equal(forward(expert, "t2v", device), expected)
    finally:
        for expert in experts:
            expert.blockswap.close()


def _quantised(folder: Path, device: str, loras: Any) -> None:
    """A loaded model one of whose weights computes as a library's own packed tensor."""
    from diffusers.quantizers.gguf.utils import GGUFParameter

    model = build("t2v").to(torch.bfloat16)
    layer = model.blocks[0].attn1.to_q
    raw = gguf_blocks("Q8_0", layer.weight.detach().float())
    packed = GGUFParameter(torch.from_numpy(raw), quant_type=GGMLQuantizationType.Q8_0)
    layer._parameters["weight"] = packed
    swap_blocks(model, STREAMED["all"], device=device, loras=loras)


def _loaded(folder: Path, device: str, loras: Any) -> None:
    swap_blocks(build("t2v"), STREAMED["all"], device="cpu", loras=loras)


def _stranger(folder: Path, device: str, loras: Any) -> None:
    """A LoRA of a model with more blocks."""
    tensors = load_file(loras[0][0])
    moved = {key.replace("blocks.0.", "blocks.7."): tensor for key, tensor in tensors.items()}
    save_file(moved, folder / "strange.safetensors")
    swap_blocks(
        build("t2v"), STREAMED["all"], device=device, loras=[folder / "strange.safetensors"]
    )


# All that the axes above leave out, in the user's words; formats are in test_format_doors.
REFUSED = {
    "LoRAs merged into a loaded model on the CPU": (_loaded, "used where they lie: open its file"),
    "LoRAs merged into weights that a library packed": (
        _quantised, "computes in a quantised form: load it beside the weights",
    ),
    "a LoRA of another model": (_stranger, "for layers that the .* does not have"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_this(
    what: str, sim: Any, sim_device: torch.device, tmp_path: Path, lora_files: LoraFiles
) -> None:
    attempt, words = REFUSED[what]
    with pytest.raises(BlockSwapError, match=words) as raised:
        attempt(tmp_path, str(sim_device), [lora_files("t2v")["lora"]])
    assert "\n" not in str(raised.value)
