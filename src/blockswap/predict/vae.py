"""Which VAE a model has; what encoding or decoding costs: cached, else run without data."""

from dataclasses import asdict, fields
from typing import Any, Literal, get_args

from ..errors import ArgsError
from ..layout.geometry import WanGeometry
from ..plan.inputs.workload import ComputeDtype, Workload, check_multiple
from .cache import counts, library_versions, remembered
from .phase import PhaseCost

VaeVersion = Literal["wan2.1", "wan2.2"]
VaeTask = Literal["decode", "encode"]


def vae_of(geometry: WanGeometry) -> VaeVersion:
    """Which VAE makes the latents of a transformer: 48 channels are Wan2.2's, used by TI2V 5B."""
    return "wan2.2" if geometry.out_channels == 48 else "wan2.1"


def predict_vae(
    workload: Workload,
    *,
    version: VaeVersion = "wan2.1",
    task: VaeTask = "decode",
    tiled: bool = False,
    dtype: ComputeDtype = "float32",
) -> PhaseCost:
    """What the VAE of diffusers needs to turn latents into one clip or back.

    `tiled`: with the tiles of `enable_tiling()`. The VAE runs a latent frame at a time and keeps
    features of the last two; the whole clip and its latents are on the device, too. Not counted is
    what cuDNN takes as workspace. Raises ArgsError, and ModelError where diffusers is absent.
    """
    for name, value, known in (("version", version, VaeVersion), ("task", task, VaeTask)):
        if value not in get_args(known):
            raise ArgsError(
                f"{name}={value!r} of the VAE is unknown: use one of {', '.join(get_args(known))}"
            )
    scale = 8 if version == "wan2.1" else 16
    check_multiple("height", workload.height, scale)
    check_multiple("width", workload.width, scale)
    size = (workload.latent_frames, workload.height // scale, workload.width // scale)
    question = {
        "kind": "vae",
        "version": version,
        "task": task,
        "tiled": tiled,
        "dtype": dtype,
        "latent": size,
        "libraries": library_versions("torch", "diffusers"),
    }

    def follow() -> dict[str, Any]:
        from .vae_chunks import follow_vae

        return asdict(follow_vae(version, task, size, tiled=tiled, dtype=dtype))

    cost: PhaseCost = remembered(question, follow, _cost_of)
    return cost


def _cost_of(kept: dict[str, Any]) -> PhaseCost:
    return PhaseCost(**counts(kept, (field.name for field in fields(PhaseCost))))
