"""What a run will take, phase by phase, and whether it fits, before anything is loaded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import PlanError
from ..plan import SwapPlan
from ..selection import BlockSwapArgs
from ..store.host_memory import free_host_bytes, resident_host_bytes
from ..stream.device import open_device
from ..swap.entry.checkpoint_file import empty_transformer, plan_transformer
from ..swap.entry.experts import plan_experts
from ..swap.entry.text_encoder import plan_text_encoder
from ..units import format_bytes
from .costs import condition_cost, decode_cost, sight_cost, text_cost
from .encode import to_encode
from .first_use import FIRST_USE_BYTES, take_first_use
from .held import carried_bytes, decode_inputs_bytes, embeddings_bytes, state_bytes
from .idle import idle_sentences
from .job import Job
from .parts.load import class_named, load_part
from .phase import Phase, with_seconds
from .sample import boundary_of, first_experts_steps, loras_of, workload_of

PLANNING_BYTES = 4 * 2**20  # what the process may still grow by until its plan is made


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The phases in order, how the VAE decodes, and the plan of the transformers' blocks."""

    phases: tuple[Phase, ...]
    fits: bool
    verdict: str
    tiled: bool
    blocks: SwapPlan
    args: BlockSwapArgs
    encoder_args: BlockSwapArgs
    notes: tuple[str, ...] = ()

    @property
    def device_peak_bytes(self) -> int:
        return max(phase.device_bytes for phase in self.phases)

    @property
    def host_peak_bytes(self) -> int:
        return max(phase.host_bytes for phase in self.phases)


def plan_run(job: Job) -> RunPlan:
    """Plans the run. Nothing but headers and configs is read. Raises PlanError where not even the
    transformer's least fits, and what opening the checkpoints raises."""
    parts = job.parts
    _warm_up(job)
    base = (resident_host_bytes() or 0) + FIRST_USE_BYTES
    limit = _device_limit(job)
    tiled = _tiles(job, limit)
    job = replace(job, tiled=tiled)
    args, blocks, carried, texts = _blocks(job, base)
    encoder_args = _encoder_args(job, base, limit)
    phases = (
        _seeing(job, base, limit, _encoding(job, base, encoder_args)),
        *_conditioning(job, base, texts),
        _sampling(job, base, blocks, carried),
        _decoding(job, base, tiled),
        _writing(job, base),
    )
    grown = max(0, (resident_host_bytes() or 0) + FIRST_USE_BYTES - base)  # by planning itself
    phases = tuple(replace(phase, host_bytes=phase.host_bytes + grown) for phase in phases)
    phases = with_seconds(job, phases)
    fits, verdict = _verdict(job, phases, limit)
    notes = (*parts.notes, *_switch(job), *idle_sentences(job))
    return RunPlan(phases, fits, verdict, tiled, blocks, args, encoder_args, notes)


def _warm_up(job: Job) -> None:
    """What libraries and skeletons take once is taken before the process is looked at."""
    import ftfy  # noqa: F401

    parts = job.parts
    take_first_use()
    for name in (job.pipeline, parts.text_encoder.class_name, parts.vae.class_name):
        class_named(name)
    if job.request.ram_budget is None:
        return
    unbounded = replace(job, request=replace(job.request, ram_budget=None))
    _blocks(unbounded, 0)
    texts = _encoding(unbounded, 0, _encoder_args(unbounded, 0, _device_limit(job)))
    _seeing(unbounded, 0, None, texts)


def _device_limit(job: Job) -> int | None:
    if job.on_host:
        return None
    asked = job.request.vram_budget
    return open_device(job.device).free_bytes() if asked is None else asked


def _tiles(job: Job, limit: int | None) -> bool:
    if job.request.tiled is not None:
        return job.request.tiled
    if limit is None:
        return False
    return decode_cost(job, tiled=False).peak_bytes > limit


def _blocks(job: Job, base: int) -> tuple[BlockSwapArgs, SwapPlan, int, int]:
    """How the blocks are swapped; what lies beside them, and what of that are embeddings."""
    request = job.request
    folders = [part.weights for part in job.parts.transformers]
    model: Any = empty_transformer(folders[0], device=job.device)
    item = torch.empty((), dtype=model.dtype).element_size()
    carried = carried_bytes(job, item, model.config)
    given = _ram(job, base)
    if request.chunk_tokens is not None:
        given["chunk_tokens"] = request.chunk_tokens
    if request.vram_budget is not None and not job.on_host:
        given["vram_budget"] = max(0, request.vram_budget - carried)
    elif "vram_budget" in given:
        given["vram_budget"] = max(0, given["vram_budget"] - carried)
    args = BlockSwapArgs(**given)
    how: dict[str, Any] = {"device": job.device, "workload": workload_of(job, model.dtype)}
    how |= loras_of(job)

    def plan(args: BlockSwapArgs) -> SwapPlan:
        if len(folders) == 1:
            return plan_transformer(folders[0], args, **how)
        return plan_experts(folders, args, **how)

    return *_planned(job, args, plan), carried, embeddings_bytes(job, item, model.config)


def _planned(
    job: Job, args: BlockSwapArgs, plan: Callable[[BlockSwapArgs], SwapPlan]
) -> tuple[BlockSwapArgs, SwapPlan]:
    """The plan under `args`; on the host one without a budget where nothing fits it.

    The verdict says then what is missing. On a device the plan's own sentence does.
    """
    budget = args.vram_budget_bytes
    if not job.on_host or budget is None:
        return args, plan(args)
    try:
        staging = plan(args)  # which the host holds beside, and the budget is for both
        beside = staging.pinned_bytes + staging.staging_buffers * staging.staging_bytes
        args = replace(args, vram_budget=max(0, budget - beside))
        return args, plan(args)
    except PlanError:
        args = replace(args, vram_budget=None, ram_budget=None)
        return args, plan(args)


def _encoder_args(job: Job, base: int, limit: int | None) -> BlockSwapArgs:
    """How much of the text encoder may be on the device, and in pinned memory, beside a prompt."""
    if job.parts.text_encoder.config.get("weightless"):
        return BlockSwapArgs()
    needed, given = text_cost(job).activation_bytes, _ram(job, base)
    if limit is not None:
        given["vram_budget"] = max(0, limit - needed)
    elif "vram_budget" in given:
        given["vram_budget"] = max(0, given["vram_budget"] - needed)
    return BlockSwapArgs(**given)


def _ram(job: Job, base: int) -> dict[str, Any]:
    """What of the host memory that was named a swap may take: to pin, or on the CPU to be in."""
    if job.request.ram_budget is None:
        return {}
    left = max(0, job.request.ram_budget - base - PLANNING_BYTES)
    return {"vram_budget": left} if job.on_host else {"ram_budget": left}


def _encoding(job: Job, base: int, args: BlockSwapArgs) -> Phase:
    part, texts = job.parts.text_encoder, to_encode(job)
    if not texts:
        return Phase("encode", 0, base, 0)
    if part.config.get("weightless"):
        return Phase("encode", 0, base, part.weight_bytes)
    _, plan = _planned(job, args, lambda a: plan_text_encoder(part.path, a, device=job.device))
    needed = plan.device_bytes + text_cost(job).activation_bytes
    host = base + plan.pinned_bytes + plan.staging_buffers * plan.staging_bytes
    streamed = plan.read_bytes_per_forward
    read = part.weight_bytes - min(part.weight_bytes, streamed) + streamed * len(texts)
    if job.on_host:
        return Phase("encode", 0, host + needed, read)
    return Phase("encode", needed, host, read)


def _seeing(job: Job, base: int, limit: int | None, phase: Phase) -> Phase:
    """The encoding of texts, and then of the images that the model reads CLIP's features of."""
    part = job.image_encoder()
    if part is None:
        return phase
    cost = sight_cost(job, part)
    read = phase.read_bytes + part.weight_bytes
    if job.on_host:
        host = max(phase.host_bytes, base + cost.peak_bytes)
        return replace(phase, host_bytes=host, read_bytes=read)
    peak = cost.peak_bytes if limit is None else min(cost.peak_bytes, limit)  # streamed, else
    device = max(phase.device_bytes, peak, cost.activation_bytes)
    host = max(phase.host_bytes, base + cost.weight_bytes)
    return replace(phase, device_bytes=device, host_bytes=host, read_bytes=read)


def _conditioning(job: Job, base: int, texts: int) -> list[Phase]:
    """`texts`: bytes of their embeddings, which lie beside."""
    if not job.conditioned:
        return []
    cost, files = condition_cost(job, tiled=job.tiled), job.parts.vae.weight_bytes
    peak = cost.peak_bytes + texts
    if job.on_host:
        return [Phase("condition", 0, base + peak, files)]
    return [Phase("condition", peak, base + cost.weight_bytes, files)]


def _sampling(job: Job, base: int, blocks: SwapPlan, carried: int) -> Phase:
    forwards = job.request.steps * (2 if job.request.guided else 1) * len(job.outputs)
    staging = blocks.staging_buffers * blocks.staging_bytes
    peak = (blocks.peak_bytes or blocks.device_bytes) + carried
    files = sum(part.weight_bytes for part in job.parts.transformers)
    streamed = blocks.read_bytes_per_forward
    seconds = None if blocks.timing is None else blocks.timing.step_seconds * forwards
    # The state is written between two forwards.
    most = max(peak, blocks.device_bytes + carried + state_bytes(job)) if job.on_host else 0
    host = base + blocks.pinned_bytes + staging + (most or state_bytes(job))
    read = files - min(files, streamed) + streamed * forwards
    if job.request.preview_every:
        host += _preview_bytes(job)
    return Phase("sample", 0 if job.on_host else peak, host, read, seconds)


def _preview_bytes(job: Job) -> int:
    """The VAE and the decoding of one frame, on the host beside the steps."""
    if job.parts.vae.config.get("weightless"):
        return 0
    alone = replace(job, request=replace(job.request, frames=1), device=torch.device("cpu"))
    return decode_cost(alone, tiled=job.tiled).peak_bytes


def _decoding(job: Job, base: int, tiled: bool) -> Phase:
    cost, files = decode_cost(job, tiled=tiled), job.parts.vae.weight_bytes
    if job.conditioned:  # what was conditioned on is prepared once more
        again = condition_cost(job, tiled=tiled)
        held = cost.activation_bytes + decode_inputs_bytes(job)
        cost = replace(cost, activation_bytes=max(held, again.activation_bytes))
    frames = 4 * job.request.raw_frame_bytes  # in fp32, as the pipeline returns them
    if job.on_host:
        return Phase("decode", 0, base + cost.peak_bytes + frames, files)
    return Phase("decode", cost.peak_bytes, base + max(cost.weight_bytes, 2 * frames), files)


def _writing(job: Job, base: int) -> Phase:
    return Phase("write", 0, base + 4 * job.request.raw_frame_bytes, 0)


def _switch(job: Job) -> tuple[str, ...]:
    """When the experts change; what it takes is part of the steps."""
    if len(job.parts.transformers) == 1:
        return ()
    scheduler, steps = load_part(job.parts.scheduler), job.request.steps
    boundary = boundary_of(job, scheduler)
    scheduler.set_timesteps(steps)
    high = steps if boundary is None else first_experts_steps(scheduler.timesteps, boundary)
    if 0 < high < steps:
        return (
            f"the experts change after step {high} of {steps}: both run through the same slots, so "
            "the switch takes no more than a step",
        )
    name = "high" if high else "low"
    return (f"all {steps} steps are those of the expert of {name} noise: the other one has none",)


def _verdict(job: Job, phases: tuple[Phase, ...], limit: int | None) -> tuple[bool, str]:
    worst = max(phases, key=lambda phase: phase.device_bytes)
    if limit is not None and worst.device_bytes > limit:
        return False, (
            f"does not fit: {worst.name} needs {format_bytes(worst.device_bytes)} on the device "
            f"and {format_bytes(limit)} may be used: {_advice(worst.name)}"
        )
    heavy = max(phases, key=lambda phase: phase.host_bytes)
    asked = job.request.ram_budget
    room = free_host_bytes() if asked is None else asked
    if room is not None and heavy.host_bytes > room:
        return False, (
            f"does not fit: {heavy.name} needs {format_bytes(heavy.host_bytes)} of host memory and "
            f"{format_bytes(room)} may be used: {_advice(heavy.name)}"
        )
    device = "" if limit is None else f"{worst.name} needs most of the device, "
    device += "" if limit is None else f"{format_bytes(worst.device_bytes)}; "
    return True, f"fits: {device}{heavy.name} needs {format_bytes(heavy.host_bytes)} of host memory"


def _advice(phase: str) -> str:
    return {
        "encode": "give more, or a text encoder in fewer bits",
        "condition": "give more, or ask for tiles or a smaller clip",
        "sample": "give more, or ask for fewer frames or a smaller size",
        "decode": "give more, or ask for tiles, fewer frames or a smaller size",
        "write": "give more, or ask for fewer frames",
    }[phase]


def refuse_unfit(plan: RunPlan) -> None:
    """Raises PlanError with the verdict where the run does not fit."""
    if not plan.fits:
        raise PlanError(plan.verdict)
