"""The state of an unfinished clip: one file, replaced whole after each step, of one run at a time.

Tensors are tensors of the file; everything else is JSON beside them. What a scheduler keeps is
not known here: any nesting of tensors, arrays, lists, dictionaries, numbers and texts is kept, and
anything else is refused before the first step.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import OutputError, StateError
from .summed import read_summed, write_summed

SUFFIX = ".resume"


@dataclass(frozen=True, slots=True)
class RunState:
    """`done` steps of `total`. `kept` is any nesting that `pack` takes; tensors are on the CPU."""

    done: int
    total: int
    kept: Any

    @property
    def sampled(self) -> bool:
        return self.done == self.total


def state_path(output: Path) -> Path:
    """Where the state of the clip that becomes `output` is kept."""
    return output.with_name(output.name + SUFFIX)


@contextmanager
def claimed(outputs: Sequence[Path]) -> Iterator[None]:
    """These outputs and their states are one run's inside. Raises StateError, OutputError.

    Where the system has no locks (Windows, some network mounts) nothing is claimed.
    """
    with ExitStack() as claims:
        for output in outputs:
            claims.enter_context(_claim(state_path(output).with_suffix(f"{SUFFIX}.lock"), output))
        yield


@contextmanager
def _claim(path: Path, output: Path) -> Iterator[None]:
    file = None
    while file is None:
        file = _locked(path, output)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _locked(path: Path, output: Path) -> BinaryIO | None:
    """The file at `path`, locked; None where whoever had it has just taken it away."""
    try:
        file = path.open("ab")
    except OSError as error:
        raise OutputError(
            f"cannot write {path} ({error.strerror or error}): choose another folder"
        ) from error
    try:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file
    except BlockingIOError as error:
        file.close()
        raise StateError(
            f"{output} is being made by another run: wait until it is done, or choose another name"
        ) from error
    except FileNotFoundError:
        pass
    except (ImportError, OSError):  # no locks here
        return file
    file.close()
    return None


def pack(value: Any, tensors: dict[str, torch.Tensor], label: str) -> Any:
    """`value` as JSON, its tensors brought to the CPU into `tensors`. Raises StateError."""
    import numpy

    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name, "host": value.device.type == "cpu"}
    if isinstance(value, numpy.ndarray) and value.dtype != object:
        return {"array": pack(torch.from_numpy(value.copy()), tensors, label)}
    if isinstance(value, numpy.generic):
        return {"number": value.item(), "type": value.dtype.str}
    if value is None or type(value) in (bool, int, float, str):
        return {"plain": value}
    if type(value) in (list, tuple):
        items = [pack(item, tensors, label) for item in value]
        return {"list": items, "tuple": type(value) is tuple}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"table": {key: pack(item, tensors, label) for key, item in value.items()}}
    raise StateError(
        f"the run's state cannot be kept: {label} holds a {type(value).__name__}, of which nothing "
        "is known: use a scheduler of numbers and tensors, such as UniPC or flow matching"
    )


def unpack(packed: Any, tensors: Mapping[str, torch.Tensor], device: torch.device) -> Any:
    """The inverse of `pack`; tensors that were on the device go to `device`."""
    if "tensor" in packed:
        found = tensors[packed["tensor"]]
        return found.clone() if packed["host"] else found.to(device)
    if "array" in packed:
        return unpack(packed["array"], tensors, device).numpy()
    if "number" in packed:
        import numpy

        return numpy.dtype(packed["type"]).type(packed["number"])
    if "list" in packed:
        items = [unpack(item, tensors, device) for item in packed["list"]]
        return tuple(items) if packed["tuple"] else items
    if "table" in packed:
        return {key: unpack(item, tensors, device) for key, item in packed["table"].items()}
    return packed["plain"]


def write_state(path: Path, asked: Mapping[str, str], state: RunState) -> None:
    """Replaces the file at `path` in one step; it is on the disk when this returns.

    `asked` is all that the clip depends on, in words. Raises OutputError, leaving the older state.
    """
    tensors: dict[str, torch.Tensor] = {}
    told = {
        "asked": dict(asked),
        "done": state.done,
        "total": state.total,
        "kept": pack(state.kept, tensors, "the state"),
    }
    try:
        write_summed(path, json.dumps(told), tensors)
    except OSError as error:
        raise OutputError(
            f"the run's state cannot be written to {path} ({error.strerror or error}): make room, "
            "the steps that are done are kept"
        ) from error


def read_state(path: Path, asked: Mapping[str, str], device: torch.device) -> RunState | None:
    """The state at `path`; None where there is none.

    Raises StateError where it is another run's (says what differs), or no state at all.
    """
    if not os.path.lexists(path):
        return None
    try:
        words, tensors = read_summed(path)
        told = json.loads(words)
        before = told["asked"]
        _refuse_other_run(path, before, asked)
        kept = unpack(told["kept"], tensors, device)
        return RunState(int(told["done"]), int(told["total"]), kept)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, StateError):
            raise
        raise StateError(
            f"{path} is no state of a run that could be read ({error}): remove it to begin anew"
        ) from error


def _refuse_other_run(path: Path, before: Mapping[str, str], asked: Mapping[str, str]) -> None:
    names = [name for name in {**before, **asked} if before.get(name) != asked.get(name)]
    if names:
        name = names[0]
        raise StateError(
            f"{path} is the state of another run: {name} was {before.get(name)!r:.80} then and is "
            f"{asked.get(name)!r:.80} now: ask for the same, or remove the file to begin anew"
        )
