"""Whole pipelines of tiny random models, saved as people have them: one folder for each kind."""

from pathlib import Path
from typing import Any

import torch

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "ball", "blue", "left", "blurry", "cat", "jumps"]
DIM = 24  # of the text embeddings
LATENTS = 4
VOCABULARY = 150_000  # so that the encoder's weights count beside its activations


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def text_encoder(vocabulary: int = VOCABULARY, width: int = DIM) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocabulary, d_model=width, d_kv=8, d_ff=96, num_layers=3, num_heads=width // 8
    )
    return UMT5EncoderModel(config).eval()


def vae(latents: int = LATENTS) -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        z_dim=latents,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1 * n for n in range(latents)],
        latents_std=[1.0 + 0.1 * n for n in range(latents)],
    ).eval()


def image_encoder() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        image_size=56, patch_size=14,
    )  # fmt: skip
    return CLIPVisionModel(config).eval()


def image_processor() -> Any:
    from transformers import CLIPImageProcessor

    size = {"height": 56, "width": 56}
    return CLIPImageProcessor(size=size, crop_size=size)


def transformer(kind: str = "t2v", *, image: bool = False) -> Any:
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    config: dict[str, Any] = dict(
        patch_size=(1, 2, 2),
        num_attention_heads=3,
        attention_head_dim=16,
        in_channels=LATENTS,
        out_channels=LATENTS,
        text_dim=DIM,
        freq_dim=32,
        ffn_dim=16384,
        num_layers=6,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )
    if image:
        config |= {"in_channels": 2 * LATENTS + 4}
    if kind in WITH_CLIP:
        config |= {"image_dim": 32, "added_kv_proj_dim": 48}
    if kind == "flf":
        config |= {"pos_embed_seq_len": 2 * 17}  # of two images
    if kind == "vace":
        config |= {"vace_layers": [0, 2], "vace_in_channels": 2 * LATENTS + 64}
        return WanVACETransformer3DModel(**config).eval()
    return WanTransformer3DModel(**config).eval()


def scheduler(shift: float = 3.0) -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


# "ti2v" reads a timestep for each token, as TI2V 5B does; "ti2v-image" starts from an image, too.
KINDS = ("t2v", "i2v", "i2v-clip", "flf", "ti2v", "ti2v-image", "vace", "v2v", "ti2v-video",
         "two-experts")  # fmt: skip
FROM_VIDEOS = ("v2v", "ti2v-video")
# Those that are made by diffusers' pipeline for images, and those that have the parts of another.
FROM_IMAGES = ("i2v", "i2v-clip", "flf", "ti2v-image")
WITH_CLIP = ("i2v-clip", "flf")
READS_IMAGE = ("i2v", "i2v-clip", "flf")
SAVED_AS = {"v2v": "t2v", "ti2v-image": "ti2v", "ti2v-video": "ti2v"}


def save(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A pipeline of that kind below `folder`; `v2v` has the parts of `t2v`."""
    import diffusers

    torch.manual_seed(7)
    parts: dict[str, Any] = {
        "tokenizer": tokenizer(),
        "text_encoder": text_encoder(),
        "vae": vae(),
        "scheduler": scheduler(),
        "transformer": transformer(kind, image=kind in READS_IMAGE).to(dtype),
    }
    how: dict[str, Any] = {}
    if kind == "two-experts":
        parts["transformer_2"] = transformer().to(dtype)
        how["boundary_ratio"] = 0.875
    name = {"vace": "WanVACEPipeline"}.get(kind, "WanPipeline")
    if kind in READS_IMAGE:
        name = "WanImageToVideoPipeline"
        clip = kind in WITH_CLIP
        parts["image_encoder"] = image_encoder() if clip else None
        parts["image_processor"] = image_processor() if clip else None
    if kind == "ti2v":
        how["expand_timesteps"] = True
    if kind == "vace":
        how |= {"transformer_2": None}
    for part in parts.values():
        randomise(part)
    getattr(diffusers, name)(**parts, **how).save_pretrained(folder)
    return folder


def randomise(part: Any) -> None:
    """Zeros that a constructor leaves (modulation, biases) would hide what is not applied."""
    if isinstance(part, torch.nn.Module):
        for parameter in part.parameters():
            if not parameter.any():
                parameter.data.normal_(std=0.02)
