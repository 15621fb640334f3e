"""Families of models that make videos: HunyuanVideo 1.5, HunyuanVideo, LTX-2 and MiniMax-H3.

Sources: `__call__` and `encode_prompt` of diffusers' pipelines (arguments, tokens, steps of sizes
and frames); the defaults of diffusers' classes, taken for those of the published transformers and
VAEs but for what is stated. Of LTX-2 and MiniMax-H3, which make sound, too, the VAE of sound is
left out: it is smaller than that of frames.
"""

from ..plan.inputs.workload import Grid
from .encoders import BYT5_SMALL, CLIP_L, GEMMA3_12B, QWEN3_VL_32B, QWEN25_VL_7B_TEXT
from .record import Encoder, Family, Made, Part, Soundtrack, Where

HUNYUAN_VIDEO_15 = Family(
    class_name="HunyuanVideo15Transformer3DModel",
    grid=Grid(pixels=16, whose="HunyuanVideo 1.5"),
    size=(848, 480),
    frames=121,
    vae_pixels=16,
    patch=1,
    text_tokens=1000,
    arguments={
        "hidden_states": Made(("batch", "in_channels", "frames", "height", "width")),
        "timestep": Made(("batch",)),
        "encoder_hidden_states": Made(("batch", "text", "text_embed_dim")),
        "encoder_attention_mask": Made(("batch", "text"), "int64", "ones"),
        "encoder_hidden_states_2": Made(("batch", 256, "text_embed_2_dim")),
        "encoder_attention_mask_2": Made(("batch", 256), "int64", "ones"),
        "image_embeds": Made(("batch", 729, "image_embed_dim"), filled="zeros"),
    },
    latents=Made((1, 32, "frames", "height", "width")),
    vae=Part("AutoencoderKLHunyuanVideo15"),
    encoders=(Encoder(QWEN25_VL_7B_TEXT, 1108), Encoder(BYT5_SMALL, 256)),
)
LTX_2 = Family(
    class_name="LTX2VideoTransformer3DModel",
    grid=Grid(pixels=32, step=8, whose="LTX-2"),
    size=(768, 512),
    frames=121,
    vae_pixels=32,
    patch=1,
    text_tokens=1024,
    batch=2,
    soundtrack=Soundtrack(frames_per_second=24, per_second=25),
    arguments={
        "hidden_states": Made(("batch", "tokens", "in_channels")),
        "audio_hidden_states": Made(("batch", "audio", "audio_in_channels")),
        "encoder_hidden_states": Made(("batch", "text", "caption_channels")),
        "audio_encoder_hidden_states": Made(("batch", "text", "caption_channels")),
        "timestep": Made(("batch",), "float32"),
        "sigma": Made(("batch",), "float32"),
        "encoder_attention_mask": Made(("batch", "text"), "int64"),
        "audio_encoder_attention_mask": Made(("batch", "text"), "int64"),
        "num_frames": "frames",
        "height": "height",
        "width": "width",
        "fps": 24.0,
        "audio_num_frames": "audio",
        "video_coords": Made(("batch", 3, "tokens", 2), "float32"),
        "audio_coords": Made(("batch", 1, "audio", 2), "float32"),
    },
    latents=Made((1, 128, "frames", "height", "width")),
    # Its defaults count a stage of the encoder twice: a latent is 32 pixels wide.
    vae=Part(
        "AutoencoderKLLTX2Video",
        {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8},
    ),
    encoders=(Encoder(GEMMA3_12B, 1024),),
)
MINIMAX_H3 = Family(
    class_name="MiniMaxH3Transformer3DModel",
    grid=Grid(pixels=32, step=17, first=5, per_step=5, lead=2, whose="MiniMax-H3"),
    size=(1344, 768),
    frames=124,
    vae_pixels=16,
    patch=2,
    text_tokens=512,
    soundtrack=Soundtrack(frames_per_second=24, per_second=40, channels=2),
    arguments={
        "hidden_states": Made((1, "tokens", "in_channels*4"), "float32"),
        "audio_hidden_states": Made((1, "audio", "audio_in_channels"), "float32"),
        "encoder_hidden_states": Made((1, "text", "text_dim")),
        "timestep": Made((2,), "float32"),
        "timestep_indices": Made(("text+audio+tokens",), "int64"),
        "token_tags": Made(("text+audio+tokens",), "int64"),
        "position_ids": Made(("text+audio+tokens", 3), "float64"),
        "video_indices": Made(("tokens",), "int64"),
        "audio_indices": Made(("audio",), "int64"),
        "text_indices": Made(("text",), "int64"),
    },
    latents=Made((1, 24, "frames", "height", "width")),
    vae=Part("AutoencoderKLMiniMaxH3"),
    encoders=(Encoder(QWEN3_VL_32B, 512),),
)
_LLAMA_8B = Part(
    "LlamaModel",
    {
        "model_type": "llama",
        "vocab_size": 128320,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
)
HUNYUAN_VIDEO = Family(
    class_name="HunyuanVideoTransformer3DModel",
    grid=Grid(pixels=16, whose="HunyuanVideo"),
    size=(1280, 720),
    frames=129,
    vae_pixels=8,
    patch=2,
    text_tokens=256,
    arguments={
        "hidden_states": Made(("batch", "in_channels", "frames", "height", "width")),
        "timestep": Made(("batch",)),
        "encoder_hidden_states": Made(("batch", "text", "text_embed_dim")),
        "encoder_attention_mask": Made(("batch", "text"), "int64", "ones"),
        "pooled_projections": Made(("batch", "pooled_projection_dim")),
        "guidance": Where("guidance_embeds", Made(("batch",))),
    },
    latents=Made((1, 16, "frames", "height", "width")),
    vae=Part("AutoencoderKLHunyuanVideo"),
    encoders=(Encoder(_LLAMA_8B, 351), Encoder(CLIP_L, 77)),
)
