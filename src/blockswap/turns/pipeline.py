"""`swap_pipeline`: a pipeline that its user built runs in the memory that is named."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ArgsError, ModelError, PlanError, StateError
from ..selection import BlockSwapArgs
from ..stream.device import open_device
from ..swap.entry.arguments import refuse_swapped
from ..swap.guards.open_swaps import is_swapped
from ..swap.plan_inputs.outlook import refuse_other_workloads
from ..units import format_bytes
from .call_plan import CallPlan
from .methods import methods_of_model, methods_of_pipeline
from .rehearsal import rehearse
from .stage import Member, Stage

_STAGE = "blockswap_stage"
_EXPERTS = ("transformer", "transformer_2")


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What is known of a model's turn before the first one: its bytes, and how it will lie there.

    `how` is "whole" or "streamed" where the weights alone decide it, else "by its inputs": what a
    call needs beside them is followed when it comes.
    """

    name: str
    weight_bytes: int
    how: str


class PipelineSwap:
    """A pipeline whose models take turns on the device, until `close()` or the end of its `with`.

    `plan` is what was decided before anything moved. Not made by callers: see `swap_pipeline`.
    """

    def __init__(self, pipe: Any, stage: Stage, members: list[Member], limit: int | None) -> None:
        self.pipe, self._stage, self._members = pipe, stage, members
        self.plan = tuple(_planned(member, limit) for member in members)
        self._classes: list[tuple[Any, type, type]] = []  # of each, as it came and as it is now
        self.closed = False
        # Models and pipeline ask the stage first: their classes are derived, under their names.
        for member in members:
            for model in member.models:
                self._derive(model, methods_of_model(type(model), stage, member))
        self._derive(pipe, methods_of_pipeline(type(pipe), stage, _models_of(pipe)))
        vars(pipe)[_STAGE] = stage

    def report(self) -> str:
        """A line for each model: its bytes, its turns, how it lay there."""
        lines = []
        for member in self._members:
            lines.append(
                f"{member.name}: {format_bytes(member.weights)}, {_turns(member, self._stage)}"
            )
            said = [*member.sentences, *([member.tiles] if member.tiles else [])]
            lines += [f"  {sentence}" for sentence in said]
        return "\n".join(lines)

    def plan_call(self, *args: Any, **kwargs: Any) -> CallPlan:
        """What `pipe(*args, **kwargs)` will take and whether it fits, turn by turn, beforehand.

        The pipeline's code is gone through without its weights: nothing is loaded or computed.
        What cannot be known that way is said to be so; what a library keeps on the device from an
        earlier call (Qwen-Image's rope tables, 2 MiB) is counted again. Raises StateError after
        `close()`.
        """
        if self.closed:
            raise StateError("this swap is closed: plan a call while it is open")
        stage, name = self._stage, type(self.pipe).__name__
        with stage.call_of(name), stage.turn_of(name):
            stage.clear()
            return rehearse(self.pipe, stage, self._members, args, kwargs)

    def close(self) -> None:
        """Every weight is where it was, and the pipeline runs as before. Raises StateError, and
        changes nothing, while the pipeline runs or a later swap has one of its models."""
        if self.closed:
            return
        self._stage.refuse_running(type(self.pipe).__name__)
        for owner, _, derived in self._classes:
            if type(owner) is not derived:
                raise StateError(
                    f"this swap was to be closed, and its {type(owner).__name__} was swapped with "
                    "another pipeline since: close that one first"
                )
        self.closed = True
        self._stage.clear()
        self._stage.restore_tiling()
        for owner, kind, _ in self._classes:
            owner.__class__ = kind
        vars(self.pipe).pop(_STAGE, None)

    def __enter__(self) -> "PipelineSwap":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _derive(self, owner: Any, methods: Mapping[str, Any]) -> None:
        kind = type(owner)
        described = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        derived = type(kind.__name__, (kind,), {**described, **methods})
        owner.__class__ = derived
        self._classes.append((owner, kind, derived))


def swap_pipeline(
    pipe: Any,
    *,
    device: str | torch.device,
    vram_budget: int | str | None = None,
    ram_budget: int | str | None = None,
    workload: Any = None,
    tiled: bool | None = None,
) -> PipelineSwap:
    """Lets the models of a pipeline of diffusers take turns on `device`, within `vram_budget`.

    `pipe` is any pipeline whose models are in host memory. Each comes to the device when it is
    called and leaves when another one is: whole where it fits beside what the call needs, else
    with its blocks streamed; two transformers as experts of one budget. A VAE works in its own
    tiles where it must (`tiled` says it otherwise). Results are those of the whole pipeline to the
    last bit, with the same tiles. `workload` says the clip of a Wan transformer, as in
    `swap_blocks`; what other calls need is followed from their inputs when they come.

    `ram_budget` is checked against the models, which are there already. Raises ArgsError,
    ModelError, PlanError where no turn of a model can fit, or DeviceError.
    """
    where = open_device(device)
    args = BlockSwapArgs(vram_budget=vram_budget, ram_budget=ram_budget)
    refuse_other_workloads(workload)
    if not isinstance(tiled, bool | None):
        raise ArgsError(f"tiled={tiled!r} was given: give True, False, or leave it out")
    members = _members(pipe)
    _refuse_foreign(pipe, members)
    held = sum(member.weights for member in members)
    if args.ram_budget_bytes is not None and held > args.ram_budget_bytes:
        raise PlanError(
            f"ram_budget={format_bytes(args.ram_budget_bytes)} was asked, and the models of this "
            f"{type(pipe).__name__} are {format_bytes(held)} in host memory already: give that "
            "much, or stream them from their files (open_transformer, open_text_encoder)"
        )
    stage = Stage(where, args.vram_budget_bytes, args.ram_budget_bytes, workload)
    if tiled is not None:
        stage.tiled = tiled
        for model in (model for member in members for model in member.models):
            stage.switch_tiling(model, on=tiled)
    limit = args.vram_budget_bytes if args.vram_budget_bytes is not None else where.free_bytes()
    on_host = stage.device.type == "cpu"  # nothing moves, for everything is there
    return PipelineSwap(pipe, stage, members, None if on_host else limit)


def _members(pipe: Any) -> list[Member]:
    """Its models by name, experts together; each object once. Raises ArgsError."""
    components = getattr(pipe, "components", None)
    if not isinstance(components, Mapping):
        raise ArgsError(
            f"a {type(pipe).__name__} was given, which has no components: give a pipeline of "
            "diffusers, or swap its models one by one"
        )
    found = _models_of(pipe)
    if not found:
        raise ArgsError(f"this {type(pipe).__name__} has no model to swap: load its weights first")
    members, seen = [], set()
    for name, model in found.items():
        if id(model) in seen:
            continue
        names = tuple(n for n in _EXPERTS if n in found) if name in _EXPERTS else (name,)
        models = tuple({id(found[n]): found[n] for n in names}.values())
        seen |= {id(model) for model in models}
        members.append(Member(names, models))
    return members


def _models_of(pipe: Any) -> dict[str, torch.nn.Module]:
    return {n: m for n, m in pipe.components.items() if isinstance(m, torch.nn.Module)}


def _refuse_foreign(pipe: Any, members: list[Member]) -> None:
    """Other means that move the same weights, and models that are not in host memory."""
    if _STAGE in vars(pipe):
        raise StateError("this pipeline is swapped already: close that first")
    if any("_hf_hook" in vars(m) for member in members for m in member.models):
        pipe.remove_all_hooks()  # of enable_model_cpu_offload, whose work this is from now on
        pipe.to("cpu")
    for member in members:
        for model in member.models:
            if is_swapped(model):
                raise StateError(
                    f"the blocks of {member.name} are swapped already: close that, and they are "
                    "swapped with the pipeline; a model that streams from its file stays as it is, "
                    "and the other parts leave by pipe.enable_group_offload(..., "
                    f"exclude_modules={list(member.names)})"
                )
            refuse_swapped(model)  # a part of it may be
            strange = {t.device.type for t in model.parameters()} - {"cpu"}
            if strange:
                raise ModelError(
                    f"{member.name} is on {min(strange)}, and models wait in host memory for their "
                    'turn: load the pipeline there, or pipe.to("cpu") first'
                )


def _turns(member: Member, stage: Stage) -> str:
    if stage.device.type == "cpu":
        return "runs on the CPU, where it lies"
    if not member.turns:
        return "no turn yet"
    how, needs = "streamed" if member.streamed else "whole", member.activation_bytes
    beside = "" if needs is None else f", {format_bytes(needs)} beside its weights"
    return f"{member.turns} turns, {how}{beside}"


def _planned(member: Member, limit: int | None) -> ModelPlan:
    if limit is None:
        how = "whole"
    elif member.weights > limit:
        how = "streamed"
    else:
        how = "by its inputs"
    return ModelPlan(member.name, member.weights, how)
