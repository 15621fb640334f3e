"""Pipelines of several families with tiny random models, as users build them; a call of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "ball", "cat", "jumps", "blurry"]


@dataclass(frozen=True)
class Family:
    """How the pipeline is built, and what it is called with beside prompt and generator."""

    build: Callable[[], Any]
    call: dict[str, Any]


def words(length: int = 77) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=length,
    )  # fmt: skip


def clip() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
            num_attention_heads=4, eos_token_id=1, bos_token_id=0, pad_token_id=0,
            projection_dim=32,
        )
    )  # fmt: skip


def t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=50, d_model=32, d_kv=8, d_ff=4096, num_layers=4, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config)


def flow() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler()


def flux() -> Any:
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

    vae = AutoencoderKL(
        sample_size=32, in_channels=3, out_channels=3, block_out_channels=(4,), layers_per_block=1,
        latent_channels=1, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
        shift_factor=0.0609, scaling_factor=1.5035,
    )  # fmt: skip
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=3, num_single_layers=3, attention_head_dim=128,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=[32, 48, 48],
    )  # fmt: skip
    return FluxPipeline(
        scheduler=flow(), vae=vae, text_encoder=clip(), tokenizer=words(), text_encoder_2=t5(),
        tokenizer_2=words(), transformer=transformer,
    )  # fmt: skip


def ltx() -> Any:
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    vae = AutoencoderKLLTXVideo(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False), upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True,
        decoder_causal=False,
    )  # fmt: skip
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4,
        attention_head_dim=64, cross_attention_dim=256, num_layers=6, caption_channels=32,
    )  # fmt: skip
    return LTXPipeline(
        scheduler=flow(), vae=vae, text_encoder=t5(), tokenizer=words(128), transformer=transformer
    )


def qwen() -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "hidden_size": 32, "intermediate_size": 1024, "num_hidden_layers": 4,
                "num_attention_heads": 4, "num_key_value_heads": 2, "rope_scaling": rope,
                "rope_theta": 1e6, "vocab_size": 50, "pad_token_id": 0,
            },
            vision_config={
                "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
                "out_hidden_size": 16,
            },
            hidden_size=32, vocab_size=50, vision_end_token_id=3, vision_start_token_id=4,
            vision_token_id=5,
        )
    )  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=4, attention_head_dim=64,
        num_attention_heads=4, joint_attention_dim=32, guidance_embeds=False,
        axes_dims_rope=(16, 24, 24),
    )  # fmt: skip
    return QwenImagePipeline(
        scheduler=flow(), vae=vae, text_encoder=encoder, tokenizer=words(1024),
        transformer=transformer,
    )  # fmt: skip


def hunyuan() -> Any:
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )
    from transformers import LlamaConfig, LlamaModel

    vae = AutoencoderKLHunyuanVideo(
        in_channels=3, out_channels=3, latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8),
        layers_per_block=1, act_fn="silu", norm_num_groups=4, scaling_factor=0.476986,
        spatial_compression_ratio=8, temporal_compression_ratio=4, mid_block_add_attention=True,
    )  # fmt: skip
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=96, num_layers=2,
        num_single_layers=3, num_refiner_layers=1, patch_size=1, patch_size_t=1,
        guidance_embeds=True, text_embed_dim=32, pooled_projection_dim=32,
        rope_axes_dim=(32, 32, 32),
    )  # fmt: skip
    encoder = LlamaModel(
        LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=1024, num_hidden_layers=5,
            num_attention_heads=4, pad_token_id=0,
        )
    )  # fmt: skip
    return HunyuanVideoPipeline(
        scheduler=flow(), vae=vae, text_encoder=encoder, tokenizer=words(256),
        transformer=transformer, text_encoder_2=clip(), tokenizer_2=words(),
    )  # fmt: skip


def wan() -> Any:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
    from diffusers import WanTransformer3DModel as Transformer

    vae = AutoencoderKLWan(
        base_dim=16, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip

    def transformer() -> Any:
        return Transformer(
            num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4,
            text_dim=32, freq_dim=32, ffn_dim=4096, num_layers=5, rope_max_seq_len=64,
        )  # fmt: skip

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return WanPipeline(
        scheduler=scheduler, vae=vae, text_encoder=t5(), tokenizer=words(512),
        transformer=transformer(), transformer_2=transformer(), boundary_ratio=0.875,
    )  # fmt: skip


_SMALL = {"height": 32, "width": 32, "num_inference_steps": 2}
FAMILIES: dict[str, Family] = {
    "wan": Family(
        wan, {**_SMALL, "num_inference_steps": 4, "num_frames": 5, "max_sequence_length": 64}
    ),
    "flux": Family(flux, {**_SMALL, "height": 16, "width": 16, "max_sequence_length": 48}),
    "ltx": Family(ltx, {**_SMALL, "num_frames": 9, "max_sequence_length": 16}),
    "qwen": Family(qwen, {**_SMALL, "true_cfg_scale": 2.0, "negative_prompt": "blurry"}),
    "hunyuan": Family(
        hunyuan,
        {
            **_SMALL,
            "num_frames": 9,
            "max_sequence_length": 16,
            "prompt_template": {"template": "{}", "crop_start": 0},
        },
    ),
}


def built(name: str) -> Any:
    """The pipeline with equal weights every time, none of which requires grad."""
    torch.manual_seed(5)
    pipe = FAMILIES[name].build()
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
            for parameter in part.parameters():
                if not parameter.any():
                    parameter.data.normal_(std=0.02)
    return pipe


def made(pipe: Any, name: str, **changes: Any) -> torch.Tensor:
    """What it makes of a prompt, before it becomes pictures."""
    given = {**FAMILIES[name].call, "output_type": "pt", "return_dict": False, **changes}
    (out,) = pipe("a red ball", generator=torch.Generator().manual_seed(3), **given)
    return torch.as_tensor(out if isinstance(out, torch.Tensor) else out[0]).cpu()
