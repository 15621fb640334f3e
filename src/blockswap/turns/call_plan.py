"""What a pipeline's call will take: how each model lies in its turn, its peaks, and the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import PlanError
from ..swap import plan_loaded
from ..units import format_bytes
from .stage import Member, Stage
from .turn import args_of_turn, device_bytes


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """One model's turn in a call to come. `how`: "whole", "streamed", "in tiles" or "not known".

    `device_bytes` is the peak there, its weights and the pipeline's own tensors included, and
    `host_bytes` that of host memory for models and what the call holds; None where not known.
    """

    name: str
    how: str
    device_bytes: int | None
    host_bytes: int | None


@dataclass(frozen=True, slots=True)
class CallPlan:
    """What a call will take, turn by turn. `fits` is None where something is not known."""

    turns: tuple[TurnPlan, ...]
    fits: bool | None
    verdict: str

    @property
    def device_peak_bytes(self) -> int:
        return max((turn.device_bytes or 0 for turn in self.turns), default=0)


@dataclass(frozen=True, slots=True)
class Need:
    """One call of a model: `held` bytes are the pipeline's own meanwhile."""

    held: int
    nbytes: int
    tiled: bool


def plan_of_call(
    stage: Stage, members: Sequence[Member], needs: Mapping[str, Sequence[Need]], stopped: str
) -> CallPlan:
    """The plan of every turn of a call, from what each member's calls need.

    `stopped` says why nothing is known of members that are missing in `needs`; "": they have no
    turn.
    """
    weights = sum(member.weights for member in members)
    turns, refused = [], ""
    for member in members:
        own = needs.get(member.name, ())
        if not own:
            if stopped:
                turns.append(TurnPlan(member.name, "not known", None, None))
            continue
        try:
            turns.append(_turn(stage, member, own, weights))
        except PlanError as error:
            refused = refused or f"does not fit: {member.name}: {error}"
            turns.append(TurnPlan(member.name, "does not fit", None, None))
    return CallPlan(tuple(turns), *_verdict(stage, turns, refused, stopped))


def _turn(stage: Stage, member: Member, needs: Sequence[Need], weights: int) -> TurnPlan:
    need = max(needs, key=lambda one: one.held + one.nbytes)
    if stage.device.type == "cpu":
        return TurnPlan(member.name, "whole", 0, weights + need.held + need.nbytes)
    room = None if stage.budget is None else max(0, stage.budget - need.held)
    workload = stage.workload_of(member)
    args = args_of_turn(
        member.models, room, need.nbytes, stage.ram_budget, follows=workload is not None
    )
    if args is None:
        there = sum(map(device_bytes, member.models))
        how = "in tiles" if need.tiled else "whole"
        return TurnPlan(member.name, how, need.held + there + need.nbytes, weights)
    plan = plan_loaded(member.models, args, device=stage.device, workload=workload)
    beside = need.nbytes if plan.peak_bytes is None else plan.peak_bytes - plan.device_bytes
    # While weights move into pinned memory, one block is there twice.
    host = weights + plan.staging_buffers * plan.staging_bytes + plan.slot_bytes
    return TurnPlan(member.name, "streamed", need.held + plan.device_bytes + beside, host)


def _verdict(
    stage: Stage, turns: Sequence[TurnPlan], refused: str, stopped: str
) -> tuple[bool | None, str]:
    known = [turn for turn in turns if turn.device_bytes is not None]
    if refused:
        return False, refused
    budget = stage.budget
    worst = max(known, key=lambda turn: turn.device_bytes or 0, default=None)
    if worst is not None and budget is not None and (worst.device_bytes or 0) > budget:
        return False, (
            f"does not fit: {worst.name} needs {format_bytes(worst.device_bytes or 0)} on the "
            f"device and {format_bytes(budget)} may be used: give more, or ask for a smaller clip"
        )
    host = max((turn.host_bytes or 0 for turn in known), default=0)
    if stage.ram_budget is not None and host > stage.ram_budget:
        return False, (
            f"does not fit: {format_bytes(host)} of host memory are needed and "
            f"{format_bytes(stage.ram_budget)} may be used: give more, or open models from files"
        )
    most = "" if worst is None else (
        f"{worst.name} needs most of the device, {format_bytes(worst.device_bytes or 0)}; models "
        f"and call need {format_bytes(host)} of host memory"
    )  # fmt: skip
    if stopped:
        what = ", ".join(turn.name for turn in turns if turn.device_bytes is None)
        before = f", and before it {most}" if most else ""
        return None, f"not known of {what or 'what follows'}: {stopped}{before}"
    return True, f"fits: {most or 'no model has a turn'}"
