"""Every text encoder class: from its folder and from memory, equal to the last bit, to the byte."""

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_encoders import ENCODERS, Encoder, encode, prompt, same

from blockswap import open_text_encoder, swap_blocks

NAMES = sorted(ENCODERS)
ARGS: dict[str, Any] = {"list": {"blocks": "0,2-3"}, "count": {"blocks_to_swap": 2}, "auto": {}}
MODES = ("sim-eager", "sim-lazy")
# Each class on the CPU and in one of the simulated accelerator's modes, in turn.
ON_DEVICES = [(n, d) for i, n in enumerate(NAMES) for d in ("cpu", MODES[i % 2])]
EVERYWHERE = pytest.mark.parametrize(("name", "device"), ON_DEVICES, indirect=["device"])


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield


_FOLDERS = tempfile.TemporaryDirectory(prefix="encoders-")  # goes with the process


@functools.cache
def saved(name: str, dtype: torch.dtype, variant: str | None = None) -> Path:
    """A folder as `save_pretrained` writes it, in several shards."""
    folder = Path(tempfile.mkdtemp(dir=_FOLDERS.name))
    model = ENCODERS[name].build().to(dtype)
    model.save_pretrained(folder, max_shard_size="100KB", variant=variant)
    return folder


def loaded(name: str, dtype: torch.dtype, **more: Any) -> torch.nn.Module:
    import transformers

    found = getattr(transformers, name)
    return found.from_pretrained(saved(name, dtype), dtype=dtype, **more).eval()


def on(device: torch.device, seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in prompt(seed).items()}


def rows_asked(seed: int) -> int:
    return int(prompt(seed)["input_ids"].unique().numel())


@EVERYWHERE
def test_opened_from_its_folder(name: str, device: torch.device, request: Any) -> None:
    encoder: Encoder = ENCODERS[name]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    reference = loaded(name, dtype).to(device)
    wanted = [encode(reference, on(device, seed)) for seed in (0, 1)]
    del reference
    for args in ARGS.values():
        sim: ModuleType | None = (
            None if device.type == "cpu" else request.getfixturevalue("sim_module")
        )
        before = 0 if sim is None else sim.counters().device_bytes
        model: Any = open_text_encoder(saved(name, dtype), args, device=device)
        swap = model.blockswap
        try:
            if sim is not None:
                assert sim.counters().device_bytes - before == swap.plan.device_bytes
            for seed in (0, 1, 0):
                assert same(encode(model, on(device, seed)), wanted[seed])
            counters = swap.measured().counters
            rows = 2 * rows_asked(0) + rows_asked(1)
            assert counters.looked_up_rows == (rows if encoder.table else 0)
            assert counters.looked_up_bytes == counters.looked_up_rows * 32 * dtype.itemsize
            told = any("of lookup tables stay in the file" in s for s in swap.plan.sentences)
            assert told == encoder.table
            if "blocks_to_swap" in args:
                assert len(swap.plan.streamed) == 2
        finally:
            swap.close()
        if sim is not None:
            del model
            assert not sim.races()


@EVERYWHERE
def test_swapped_in_memory(name: str, device: torch.device) -> None:
    dtype = torch.bfloat16
    wanted = encode(loaded(name, dtype).to(device), on(device))
    model = loaded(name, dtype)
    before = dict(model.named_parameters(remove_duplicate=False))
    values = {key: value.clone() for key, value in before.items()}
    for args in ARGS.values():
        with swap_blocks(model, args, device=device) as swap:
            assert same(encode(model, on(device)), wanted)
            assert {str(p.device.type) for p in model.parameters()} <= {"cpu", device.type}
            counters = swap.measured().counters
            by_rows = ENCODERS[name].table and device.type != "cpu"
            assert counters.looked_up_rows == (rows_asked(0) if by_rows else 0)
            for key, value in model.state_dict().items():
                assert torch.equal(value.cpu(), values[key]), key
        after = dict(model.named_parameters(remove_duplicate=False))
        assert all(after[key] is before[key] for key in before)
        assert all(torch.equal(after[key], values[key]) for key in before)


@pytest.mark.parametrize("name", NAMES)
def test_another_dtype_is_as_the_class_loads_it(name: str) -> None:
    import transformers

    dtype = torch.float16  # the one in which some classes keep parts in fp32
    folder = saved(name, torch.float32)
    reference = getattr(transformers, name).from_pretrained(folder, dtype=dtype).eval()
    model: Any = open_text_encoder(folder, {"blocks_to_swap": 2}, device="cpu", dtype=dtype)
    with model.blockswap:
        wanted = {key: value.dtype for key, value in reference.named_parameters()}
        assert {key: value.dtype for key, value in model.named_parameters()} == wanted
        for key, value in reference.named_buffers():
            assert torch.equal(model.get_buffer(key), value), key
            assert model.get_buffer(key).dtype == value.dtype
        assert same(encode(model, prompt()), encode(reference, prompt()))


def test_units_are_the_blocks_of_the_class() -> None:
    for name, encoder in ENCODERS.items():
        if not encoder.units:
            continue
        model: Any = open_text_encoder(saved(name, torch.float32), device="cpu")
        with model.blockswap as swap:
            lists = [unit.name.rpartition(".")[0] for unit in swap.plan.units]
            assert {key: lists.count(key) for key in set(lists)} == encoder.units, name
