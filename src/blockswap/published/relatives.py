"""Relatives of Wan that diffusers has a class of its own for: Wan2.2-Animate.

Sources: `WanAnimatePipeline` of diffusers and the defaults of its classes. A clip of 77 frames is
one segment, and each segment has the reference image as one latent frame more. Its image encoder
and the encoding of pose and face are left out: they run once, before the first step.
"""

from ..plan.inputs.workload import WAN_GRID
from .encoders import UMT5_XXL
from .record import Encoder, Family, Made, Part

WAN_VAE = Part("AutoencoderKLWan")  # the defaults of its class are Wan 2.1's
WAN_ANIMATE = Family(
    class_name="WanAnimateTransformer3DModel",
    grid=WAN_GRID,
    size=(1280, 720),
    frames=77,
    vae_pixels=8,
    patch=2,
    text_tokens=512,
    arguments={
        "hidden_states": Made(("batch", "in_channels", "frames+1", "height", "width")),
        "timestep": Made(("batch",)),
        "encoder_hidden_states": Made(("batch", "text", "text_dim")),
        "encoder_hidden_states_image": Made(("batch", 257, "image_dim")),
        "pose_hidden_states": Made(("batch", "latent_channels", "frames", "height", "width")),
        "face_pixel_values": Made(
            ("batch", 3, "frames*4", "motion_encoder_size", "motion_encoder_size")
        ),
    },
    latents=Made((1, 16, "frames", "height", "width")),
    vae=WAN_VAE,
    encoders=(Encoder(UMT5_XXL, 512),),
    in_pieces=True,
    vae_dtype="float32",
)
