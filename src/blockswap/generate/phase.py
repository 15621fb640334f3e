"""One phase of a run: its peaks, what it reads, and its seconds where the machine's are known."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..plan.inputs.machine import Machine
from ..probe import cached_probe
from .costs import condition_cost, decode_cost, sight_cost, stated_dtype, text_cost
from .encode import to_encode
from .job import Job
from .parts.load import build_empty


@dataclass(frozen=True, slots=True)
class Phase:
    """The peak of one phase, and what it reads. `seconds` is None where speeds are not known.

    `device_bytes` is 0 on the CPU, where everything counts as `host_bytes`.
    """

    name: str
    device_bytes: int
    host_bytes: int
    read_bytes: int
    seconds: float | None = None


def with_seconds(job: Job, phases: Iterable[Phase]) -> tuple[Phase, ...]:
    """The phases with the seconds of what is no transformer: its FLOPs by the machine's rate, its
    files by the disk's. Each text and clip counts; writing a video has no rate."""
    machine = job.machine or _probed(job)
    if machine is None:
        return tuple(phases)
    return tuple(_timed(job, phase, machine) for phase in phases)


def _probed(job: Job) -> Machine | None:
    found = cached_probe(job.device, place=job.parts.vae.path)
    return None if found is None else found.machine


def _timed(job: Job, phase: Phase, machine: Machine) -> Phase:
    work = {"encode": _encoding, "condition": _conditioning, "decode": _decoding}.get(phase.name)
    if phase.seconds is not None or work is None:
        return phase
    reading = machine.read_seconds(phase.read_bytes)
    computing = [machine.compute_seconds(flops, dtype) for flops, dtype in work(job)]
    if reading is None or None in computing:
        return phase
    return replace(phase, seconds=reading + sum(each or 0.0 for each in computing))


def _encoding(job: Job) -> list[tuple[int, str]]:
    """FLOPs of each model, and the dtype that they are done in."""
    texts, images = len(to_encode(job)), job.image_encoder()
    done = [] if not texts else [(texts * text_cost(job).flops, job.parts.text_encoder)]
    if images is not None:
        done.append((sight_cost(job, images).flops, images))
    return [(flops, _name(stated_dtype(part))) for flops, part in done]


def _conditioning(job: Job) -> list[tuple[int, str]]:
    flops = condition_cost(job, tiled=job.tiled).flops
    return [(len(job.outputs) * flops, _of_vae(job))]


def _decoding(job: Job) -> list[tuple[int, str]]:
    """What a clip was conditioned on is prepared once more."""
    again = _conditioning(job) if job.conditioned else []
    flops = decode_cost(job, tiled=job.tiled).flops
    return [(len(job.outputs) * flops, _of_vae(job)), *again]


def _of_vae(job: Job) -> str:
    model: Any = build_empty(job.parts.vae)
    return _name(model.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
