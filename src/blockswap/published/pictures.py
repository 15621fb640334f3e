"""Families of models that make pictures: Qwen-Image, Flux.2, Flux.1 and Z-Image.

Sources: `__call__` and `encode_prompt` of diffusers' pipelines (arguments, tokens, steps of sizes);
the defaults of diffusers' classes, taken for those of the published transformers and of Qwen's and
Flux.2's VAEs; the vae/config.json of black-forest-labs/FLUX.1-dev, which Z-Image has, too.
"""

from ..plan.inputs.workload import Grid
from .encoders import CLIP_L, MISTRAL_SMALL_24B, QWEN3_4B, QWEN25_VL_7B, T5_XXL
from .record import Each, Encoder, Family, Made, Part, Where


def _picture(whose: str) -> Grid:
    return Grid(pixels=16, step=0, whose=whose)


FLUX_VAE = Part(
    "AutoencoderKL",
    {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 16,
        "sample_size": 1024,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
)
QWEN_IMAGE = Family(
    class_name="QwenImageTransformer2DModel",
    grid=_picture("Qwen-Image"),
    size=(1328, 1328),
    frames=1,
    vae_pixels=8,
    patch=2,
    text_tokens=512,
    arguments={
        "hidden_states": Made(("batch", "tokens", "in_channels")),
        "timestep": Made(("batch",)),
        "encoder_hidden_states": Made(("batch", "text", "joint_attention_dim")),
        "img_shapes": Each([(1, "rows", "columns")]),
    },
    latents=Made((1, 16, 1, "height", "width")),
    vae=Part("AutoencoderKLQwenImage"),
    encoders=(Encoder(QWEN25_VL_7B, 546),),  # 512 behind a template of 34
)
FLUX_2 = Family(
    class_name="Flux2Transformer2DModel",
    grid=_picture("Flux.2"),
    size=(1024, 1024),
    frames=1,
    vae_pixels=8,
    patch=2,
    text_tokens=512,
    arguments={
        "hidden_states": Made(("batch", "tokens", "in_channels")),
        "timestep": Made(("batch",)),
        "guidance": Where("guidance_embeds", Made((1,), "float32")),
        "encoder_hidden_states": Made(("batch", "text", "joint_attention_dim")),
        "txt_ids": Made(("batch", "text", 4), "int64"),
        "img_ids": Made(("batch", "tokens", 4), "int64"),
    },
    latents=Made((1, 32, "height", "width")),
    vae=Part("AutoencoderKLFlux2"),
    encoders=(Encoder(MISTRAL_SMALL_24B, 512),),
)
FLUX_1 = Family(
    class_name="FluxTransformer2DModel",
    grid=_picture("Flux.1"),
    size=(1024, 1024),
    frames=1,
    vae_pixels=8,
    patch=2,
    text_tokens=512,
    arguments={
        "hidden_states": Made(("batch", "tokens", "in_channels")),
        "timestep": Made(("batch",)),
        "guidance": Where("guidance_embeds", Made(("batch",), "float32")),
        "pooled_projections": Made(("batch", "pooled_projection_dim")),
        "encoder_hidden_states": Made(("batch", "text", "joint_attention_dim")),
        "txt_ids": Made(("text", 3)),
        "img_ids": Made(("tokens", 3)),
    },
    latents=Made((1, 16, "height", "width")),
    vae=FLUX_VAE,
    encoders=(Encoder(CLIP_L, 77), Encoder(T5_XXL, 512)),
)
Z_IMAGE = Family(
    class_name="ZImageTransformer2DModel",
    grid=_picture("Z-Image"),
    size=(1024, 1024),
    frames=1,
    vae_pixels=8,
    patch=2,
    text_tokens=512,
    arguments={
        "x": Each(Made(("in_channels", 1, "height", "width"))),
        "t": Made(("batch",)),
        "cap_feats": Each(Made(("text", "cap_feat_dim"))),
    },
    latents=Made((1, 16, "height", "width")),
    vae=FLUX_VAE,
    encoders=(Encoder(QWEN3_4B, 512),),
)
