"""Whatever torch lets a caller turn on around a call changes neither bits nor bytes of a swap."""

import ast
import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Shelf, forward, fresh, reference
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import blockswap
from blockswap import BlockSwapArgs, Swap, open_transformer, swap_blocks


class Spoiling(TorchFunctionMode):
    """A mode that sends every new tensor to meta and makes every copy one of zeros."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones, torch.frombuffer):
            return torch.empty(7, device="meta")
        if func is torch.Tensor.copy_:
            return args[0].zero_()
        return func(*args, **kwargs)


@contextlib.contextmanager
def default_device(device: torch.device | str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def both(*managers: Any) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager)
        yield


# Name -> what turns it on, given the device of the swap.
@contextlib.contextmanager
def default_tensor_type() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_tensor_type(torch.DoubleTensor)
    try:
        yield
    finally:
        torch.set_default_tensor_type(
            {torch.float32: torch.FloatTensor, torch.float64: torch.DoubleTensor}[before]
        )


STATES: dict[str, Callable[[torch.device], Any]] = {
    "with-device": lambda device: device,
    "with-meta": lambda device: torch.device("meta"),
    "set-device": default_device,
    "set-meta": lambda device: default_device("meta"),
    "bf16": lambda device: default_dtype(torch.bfloat16),
    "fp64": lambda device: default_dtype(torch.float64),
    "inference": lambda device: torch.inference_mode(),
    "grad": lambda device: torch.enable_grad(),
    "deterministic": lambda device: deterministic(),
    "mode": lambda device: Spoiling(),
    "fake": lambda device: FakeTensorMode(),
    "tensor-type": lambda device: default_tensor_type(),
    "all": lambda device: both(
        default_device("meta"), deterministic(), default_dtype(torch.float16), Spoiling()
    ),
}
# A forward sees what its caller has turned on: here only what leaves an unswapped model as it is.
HARMLESS = ("with-device", "set-device", "inference", "deterministic")


def _allocated(device: torch.device) -> int:
    gc.collect()
    return 0 if device.type == "cpu" else torch.accelerator.memory_allocated()


# Nothing here depends on the mode of the simulated device.
on_both = pytest.mark.parametrize("device", ["cpu", "sim-eager"], indirect=True)


def _open(door: str, path: Path, device: torch.device, state: Any) -> tuple[nn.Module, Swap]:
    args = BlockSwapArgs(blocks_to_swap=4)
    if door == "swap_blocks":
        model = fresh("diffusers")  # what a caller builds is the caller's
        with state:
            return model, swap_blocks(model, args, device=device)
    with state:
        opened_model: Any = open_transformer(path, args, device=device)
    return opened_model, opened_model.blockswap


@on_both
@pytest.mark.parametrize("door", ["swap_blocks", "open_transformer"])
@pytest.mark.parametrize("state", STATES)
def test_opening_and_closing(state: str, door: str, device: torch.device, shelf: Shelf) -> None:
    expected, path = reference("diffusers", device), shelf.file("diffusers")
    before = _allocated(device)
    model, swap = _open(door, path, device, STATES[state](device))
    if device.type != "cpu":
        assert _allocated(device) - before == swap.plan.device_bytes
    for unit in swap.plan.units:
        if unit.tier not in ("resident", "host"):
            kinds = {p.device.type for p in model.get_submodule(unit.name).parameters()}
            assert kinds == {"meta" if unit.tier == "disk" else "cpu"}
    assert not any(parameter.is_inference() for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(forward(model, "diffusers", device), expected)
    with STATES[state](device):
        swap.close()
    assert _allocated(device) == before
    if door == "swap_blocks":
        found = [*model.parameters(), *model.buffers()]
        assert {tensor.device.type for tensor in found} == {"cpu"}
        assert not any(tensor.is_inference() for tensor in found)
        with torch.no_grad():
            assert torch.equal(forward(model.to(device), "diffusers", device), expected)


@on_both
@pytest.mark.parametrize("door", ["swap_blocks", "open_transformer"])
@pytest.mark.parametrize("state", HARMLESS)
def test_forwards(state: str, door: str, device: torch.device, shelf: Shelf) -> None:
    expected, path = reference("diffusers", device), shelf.file("diffusers")
    model, swap = _open(door, path, device, contextlib.nullcontext())
    with swap:
        with torch.no_grad(), STATES[state](device):
            assert torch.equal(forward(model, "diffusers", device), expected)
        with torch.no_grad():
            assert torch.equal(forward(model, "diffusers", device), expected)


class Counting(TorchFunctionMode):
    """Notes which functions a forward calls."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


@on_both
@pytest.mark.parametrize("door", ["swap_blocks", "open_transformer"])
def test_a_mode_sees_the_model_alone(door: str, device: torch.device, shelf: Shelf) -> None:
    whole = fresh("diffusers").to(device)
    with torch.no_grad(), Counting() as bare:
        forward(whole, "diffusers", device)
    model, swap = _open(door, shelf.file("diffusers"), device, contextlib.nullcontext())
    with swap, torch.no_grad(), Counting() as swapped:
        forward(model, "diffusers", device)
    # A parameter is looked at in other places, but nothing is made or copied beside the model.
    made = ("empty", "zeros", "copy_", "record_stream", "frombuffer", "narrow")
    for name in made:
        assert swapped.called.count(name) == bare.called.count(name)


FACTORIES = {"empty", "zeros", "ones", "full", "tensor", "arange", "rand", "randn", "empty_strided"}
ROOMS = ("adapters", "nodes", "predict", "probe", "store", "stream", "swap")


@pytest.mark.parametrize("room", ROOMS)
def test_allocations_name_device_and_dtype(room: str) -> None:
    """The guard at the doors is not the only line: nothing is left to a default."""
    for path in (Path(blockswap.__file__).parent / room).rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            owner = call.func.value
            if isinstance(owner, ast.Name) and owner.id == "torch" and call.func.attr in FACTORIES:
                named = {keyword.arg for keyword in call.keywords}
                assert {"device", "dtype"} <= named, f"{path.name}:{call.lineno}"
