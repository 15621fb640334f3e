"""Owns how the options of `blockswap plan` about models beside the transformer are read."""

from typing import Any, get_args

from ..errors import ArgsError
from ..plan.workload import ComputeDtype
from ..predict import Companions
from ..predict.text_encoder import TextEncoderDtype

_HOST = "cpu"


def companions_of(text_encoder: str, vae: str, *, tiled: bool) -> Companions:
    """How text encoder and VAE are run: a dtype, or `cpu`. Raises ArgsError for anything else."""
    chosen: dict[str, Any] = {"vae_tiled": tiled}
    for option, name, said, kinds in (
        ("--text-encoder", "text_encoder", text_encoder, get_args(TextEncoderDtype)),
        ("--vae", "vae", vae, get_args(ComputeDtype)),
    ):
        if said == _HOST:
            chosen[f"{name}_on_host"] = True
        elif said in kinds:
            chosen[f"{name}_dtype"] = said
        else:
            raise ArgsError(f"{option} {said!r} is unknown: use one of {', '.join(kinds)}, cpu")
    return Companions(**chosen)
