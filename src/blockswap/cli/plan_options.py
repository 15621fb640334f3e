"""Owns how `blockswap plan` reads the models beside the transformer, and a card in numbers."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any, get_args

from ..errors import ArgsError
from ..layout.dtypes import HALVES
from ..plan.inputs.cards import LANE_RATES, LINK_SHARE, SUSTAINED_SHARE, find_card, machine_of_card
from ..plan.inputs.machine import DiskFigures, Machine
from ..plan.inputs.workload import ComputeDtype
from ..predict import Companions
from ..predict.text_encoder import TextEncoderDtype
from ..units import format_bytes, parse_bytes

_HOST, _STREAMED = "cpu", "streamed"
_LANES = (1, 2, 4, 8, 16)
_LEAST_TFLOPS, _MOST_TFLOPS = 1e-3, 1e6
DEFAULT_LINK = (4, 16)


@dataclass(frozen=True, slots=True)
class Numbers:
    """A card in numbers, as they were written: memory, dense 16-bit TFLOP/s, pcie3x8."""

    memory: str | None = None
    tflops: str | None = None
    link: str | None = None


def companions_of(text_encoder: str, vae: str, *, tiled: bool) -> Companions:
    """How text encoder and VAE are run: a dtype, `cpu`, or an encoder `streamed` in bfloat16.

    Raises ArgsError for anything else.
    """
    chosen: dict[str, Any] = {"vae_tiled": tiled}
    for option, name, said, kinds in (
        ("--text-encoder", "text_encoder", text_encoder, get_args(TextEncoderDtype)),
        ("--vae", "vae", vae, get_args(ComputeDtype)),
    ):
        if said == _HOST:
            chosen[f"{name}_on_host"] = True
        elif said == _STREAMED and name == "text_encoder":
            chosen["text_encoder_streamed"] = True
        elif said in kinds:
            chosen[f"{name}_dtype"] = said
        else:
            ways = [*kinds, *([_STREAMED] if name == "text_encoder" else []), _HOST]
            raise ArgsError(f"{option} {said!r} is unknown: use one of {', '.join(ways)}")
    return Companions(**chosen)


def card_machine(named: str | None, numbers: Numbers, disk: DiskFigures) -> Machine | None:
    """The machine that a card's name, its numbers, or both describe; None where neither is given.

    Numbers beside a name replace the table's. Raises ArgsError, saying which number is missing.
    """
    given = {"--gpu-memory": numbers.memory, "--gpu-tflops": numbers.tflops}
    missing = [option for option, said in given.items() if said is None]
    if named is None and numbers == Numbers():
        return None
    if named is None and missing:
        raise ArgsError(
            f"a card in numbers needs its memory and its rate: give {' and '.join(missing)} too, "
            "or a card of the table with --gpu"
        )
    machine = machine_of_card(find_card(named), disk=disk) if named is not None else _bare(disk)
    return _with_numbers(machine, numbers)


def _bare(disk: DiskFigures) -> Machine:
    generation, lanes = DEFAULT_LINK
    link = LANE_RATES[generation] * lanes * LINK_SHARE
    source = f"as given; PCIe {generation}.0 x{lanes} unless --link is given"
    return Machine("the card", False, (), pinned_link=link, disk=disk, source=source)


def _with_numbers(machine: Machine, numbers: Numbers) -> Machine:
    said = []
    if numbers.memory is not None:
        nbytes = parse_bytes(numbers.memory, name="--gpu-memory")
        if not nbytes:
            raise ArgsError(f"--gpu-memory {numbers.memory} is no memory: give bytes, as in 12GiB")
        machine = replace(machine, device_bytes=nbytes)
        said.append(f"{format_bytes(nbytes)} of memory")
    if numbers.tflops is not None:
        rate = _tflops(numbers.tflops) * 1e12 * SUSTAINED_SHARE
        halves = [dtype for dtype, _ in machine.flops if dtype != "float32"] or list(HALVES)
        kept = tuple(pair for pair in machine.flops if pair[0] not in halves)
        machine = replace(
            machine,
            flops=(*((dtype, rate) for dtype in halves), *kept),
            # In the same proportion as before.
            attention_flops=tuple(
                (dtype, rate * attention / dict(machine.flops)[dtype])
                for dtype, attention in machine.attention_flops
            ),
        )
        said.append(
            f"{numbers.tflops} TFLOP/s in 16 bits, {SUSTAINED_SHARE:.0%} of it assumed to be "
            "sustained"
        )
    if numbers.link is not None:
        machine = replace(machine, pinned_link=_link(numbers.link))
        said.append(f"{numbers.link}, {LINK_SHARE:.0%} of it assumed for copies")
    if said:
        machine = replace(machine, source=f"{machine.source}; as given: {', '.join(said)}")
    return machine


def _tflops(said: str) -> float:
    try:
        rate = float(said)
    except ValueError:
        rate = math.nan
    if not _LEAST_TFLOPS <= rate <= _MOST_TFLOPS:
        raise ArgsError(
            f"--gpu-tflops {said!r} is no rate: give the dense 16-bit TFLOP/s of the card, as in 40"
        )
    return rate


def _link(said: str) -> float:
    """Bytes a second of a link such as pcie3x8."""
    match = re.fullmatch(r"\s*pcie\s*([1-9])(?:\.0)?\s*x\s*([0-9]{1,2})\s*", said, re.A | re.I)
    if match is None or int(match[1]) not in LANE_RATES or int(match[2]) not in _LANES:
        generations = ", ".join(map(str, sorted(LANE_RATES)))
        raise ArgsError(
            f"--link {said!r} is no link: give PCIe's generation ({generations}) and lanes "
            f"({', '.join(map(str, _LANES))}), as in pcie3x8"
        )
    return LANE_RATES[int(match[1])] * int(match[2]) * LINK_SHARE
