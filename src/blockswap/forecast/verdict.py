"""Whether a whole run fits: every phase on the device, and all models together in host memory."""

from dataclasses import dataclass

from ..units import format_bytes
from .forecast import Forecast


@dataclass(frozen=True, slots=True)
class Verdict:
    """`fits`, and the one sentence that says so and names the phase that binds."""

    fits: bool
    sentence: str


def experts_of(told: Forecast) -> int:
    """How many transformers take turns in a run, by the published name."""
    return 2 if told.order.model.label.endswith("-a14b") else 1


def host_parts(told: Forecast) -> tuple[tuple[str, int], ...]:
    """What rests in host memory during a run, each with its bytes.

    Models that take turns on the device rest in RAM meanwhile. What is resident of two experts
    shares the room that the plan of one has, so the second is in RAM as a whole. Ranks share the
    transformers and have each the rest.
    """
    ranks = 1 if told.order.rates is None else told.order.rates.ranks
    plan, beside, generation = told.plan, told.order.companions, told.generation
    text, vae = generation.text_encoding, generation.decoding
    staging = plan.staging_buffers * plan.staging_bytes
    parts = [
        (_transformers(told), _transformer_bytes(told)),
        ("staging", staging),
        ("text encoder", text.weight_bytes),
        ("VAE", vae.weight_bytes),
    ]
    if told.order.on_host:
        parts.append(("activations", max(need.activation_bytes for need in told.phases)))
    else:
        on_host = [
            text.activation_bytes * beside.text_encoder_on_host,
            vae.activation_bytes * beside.vae_on_host,
        ]
        if generation.conditioning is not None:
            on_host.append(generation.conditioning.activation_bytes * beside.vae_on_host)
        parts.append(("activations on the CPU", max(on_host)))
    shared, *own = parts
    if ranks > 1:
        own = [(f"{name} of {ranks} ranks", nbytes * ranks) for name, nbytes in own]
    return tuple((name, nbytes) for name, nbytes in (shared, *own) if nbytes)


def host_bytes(told: Forecast) -> int:
    """All of it."""
    return sum(nbytes for _, nbytes in host_parts(told))


def verdict_of(told: Forecast) -> Verdict:
    """The first thing to say of a forecast."""
    order, room = told.order, told.room_bytes
    name = "the device" if order.machine is None else order.machine.name
    worst = max(told.phases, key=lambda need: need.peak_bytes)
    needed, free = host_bytes(told), order.host_free_bytes
    if room is not None and worst.peak_bytes > room:
        return Verdict(
            False,
            f"does not fit: {worst.name} needs {format_bytes(worst.peak_bytes)} on {name}, "
            f"there is {format_bytes(room)}",
        )
    if free is not None and needed > free:
        return Verdict(
            False,
            f"does not fit: the run needs {format_bytes(needed)} of host memory, "
            f"{format_bytes(free)} is free",
        )
    device = f"{worst.name} needs most, {format_bytes(worst.peak_bytes)}"
    device += f" on {name}" if room is None else f" of {format_bytes(room)} on {name}"
    host = f"{format_bytes(needed)} of host memory"
    host += " must be there" if free is None else f" of {format_bytes(free)}"
    return Verdict(True, f"fits: {device}; {host}")


def _transformers(told: Forecast) -> str:
    return "both transformers" if experts_of(told) == 2 else "transformer"


def _transformer_bytes(told: Forecast) -> int:
    plan, experts = told.plan, experts_of(told)
    if told.order.on_host:
        shared = plan.slots * plan.slot_bytes + plan.decode_bytes
        return experts * (plan.device_bytes - shared) + shared
    if any(unit.tier == "disk" for unit in plan.units):
        return plan.pinned_bytes  # the RAM budget is shared, the rest stays in the files
    resident = {unit.name for unit in plan.units if unit.tier == "resident"}
    kept = sum(u.ram_slab_bytes for u in told.order.model.units if u.name in resident)
    whole = plan.pinned_bytes + kept + plan.rest_bytes
    return plan.pinned_bytes + (experts - 1) * whole
