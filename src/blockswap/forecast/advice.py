"""What is advised where the VAE or text encoder does not fit: the least change that does."""

from collections.abc import Iterator
from dataclasses import replace

from ..plan.inputs.workload import Workload
from ..predict import Companions, PhaseNeed
from ..predict.subject import Subject

_TEXT = "text encoding"


def way_out(
    phase: PhaseNeed,
    room_bytes: int,
    subject: Subject,
    workload: Workload,
    companions: Companions,
) -> str:
    """What to do about `phase`, which needs more than `room_bytes`: the least change that fits."""
    for words, other in _changes(phase.name, companions):
        generation = subject.generation(workload, other)
        needs = {need.name: need for need in generation.phases(0)}
        if needs[phase.name].peak_bytes <= room_bytes:
            return words
    if phase.name == _TEXT:
        return "run the text encoder on the CPU (--text-encoder cpu)"
    return "run the VAE on the CPU (--vae cpu), or ask for fewer frames or a smaller size"


def _changes(name: str, companions: Companions) -> Iterator[tuple[str, Companions]]:
    if name == _TEXT:
        if not companions.text_encoder_streamed:
            said = "stream the text encoder's blocks (--text-encoder streamed)"
            yield said, replace(companions, text_encoder_streamed=True)
        return
    tiled = replace(companions, vae_tiled=True)
    if not companions.vae_tiled:
        yield "let the VAE work in tiles (--vae-tiled)", tiled
    if companions.vae_dtype == "float32":
        half = replace(companions, vae_dtype="bfloat16")
        yield "run the VAE in bfloat16 (--vae bfloat16)", half
        if not companions.vae_tiled:
            said = "let the VAE work in tiles and in bfloat16 (--vae-tiled --vae bfloat16)"
            yield said, replace(tiled, vae_dtype="bfloat16")
