"""The shipped demo model as the parts of a pipeline: what `--model tiny` means."""

from typing import Any

from ...demo.weights import weights_path
from .components import Components, Part

TINY = "tiny"
PIPELINE = "DemoPipeline"


def tiny_components() -> Components:
    """The shipped transformer, and parts without weights beside it."""
    path = weights_path()

    def part(name: str, **config: Any) -> Part:
        return Part(path, name, config)

    pixels = part(
        "DemoPixels", z_dim=48, scale_factor_spatial=4, scale_factor_temporal=1, weightless=True
    )
    return Components(
        folder=path.parent,
        transformers=(part("WanTransformer3DModel", in_channels=16, out_channels=16),),
        text_encoder=part("DemoWords", weightless=True),
        tokenizer=part("DemoWords", weightless=True),
        vae=pixels,
        scheduler=part("DemoNoise", weightless=True),
        image_encoder=None,
        image_processor=None,
        boundary_ratio=None,
        expand_timesteps=False,
        pipeline=PIPELINE,
    )
