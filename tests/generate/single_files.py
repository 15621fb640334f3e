"""A tiny Wan pipeline as people download it: one file for each part, in other programs' names."""

import re
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tiny_pipelines import DIM, WORDS, randomise, scheduler, text_encoder, tokenizer

from blockswap.adapters.vae import VAE_CONFIGS
from blockswap.layout.geometry import to_original_key
from llama_cpp_files import write_encoder

LATENTS = 16  # those of Wan 2.1; what latents are scaled by is known for no other
PREFIX = "model.diffusion_model."
Tensors = dict[str, torch.Tensor]
PIECES = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS[3:]), "▁", *"abcdefgh"]
_KINDS = {"<pad>": 3, "</s>": 3, "<unk>": 2}  # control and unknown ones, as SentencePiece counts
ROWS = 500
WAN_22: dict[str, Any] = {
    "base_dim": 8,
    "decoder_base_dim": 12,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": VAE_CONFIGS["wan2.2"]["latents_mean"],
    "latents_std": VAE_CONFIGS["wan2.2"]["latents_std"],
}
# What is written, by how it is used; and how its transformer differs from that of text to video.
MODELS = ("t2v", "t2v-experts", "i2v", "i2v-experts", "i2v-clip", "flf", "vace", "v2v", "ti2v",
          "ti2v-image")  # fmt: skip
WITH_CLIP = ("i2v-clip", "flf")
FROM_IMAGES = (*WITH_CLIP, "i2v", "i2v-experts", "ti2v-image")
_IMAGE = {"in_channels": 2 * LATENTS + 4}
_CLIP = {**_IMAGE, "image_dim": 768, "added_kv_proj_dim": 128}
_SMALL = {"in_channels": 48, "out_channels": 48}
_CHANGES: dict[str, dict[str, Any]] = {
    "i2v": _IMAGE,
    "i2v-clip": _CLIP,
    "flf": {**_CLIP, "pos_embed_seq_len": 2 * 257},
    "vace": {"num_layers": 4, "vace_layers": [0, 2], "vace_in_channels": 2 * LATENTS + 64},
    "ti2v": _SMALL,
    "ti2v-image": _SMALL,
}
_VAE = [
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
]


def vae(**config: Any) -> Any:
    """As deep as Wan's, four numbers wide: a file's depths are taken as known."""
    from diffusers import AutoencoderKLWan

    made = AutoencoderKLWan(**{"base_dim": 4, "z_dim": LATENTS, **config}).eval()
    randomise(made)
    return made


def vendor_vae(model: Any) -> Tensors:
    """The tensors of a VAE in Wan-Video's names (compared by hand with ComfyUI's own classes)."""
    levels = bool(model.config.is_residual)
    return {_vendor_name(name, levels): t.contiguous() for name, t in model.state_dict().items()}


def _vendor_name(name: str, levels: bool) -> str:
    """`levels`: each has a list of its own, as in 2.2; else a decoder has one for all of them."""
    found = re.match(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(.*)", name)
    if found is not None:
        half, level, rest = found.groups()
        inner = re.match(r"(?:resnets\.(\d+)|(?:up|down)samplers?(?:\.0)?)\.(.*)", rest)
        kind = half.split(".")[1]
        depth = 3 if kind == "up" else 2
        at = 0 if inner is None else depth if inner[1] is None else int(inner[1])
        if inner is None:
            name = f"{half}samples.{level}.{rest}"
        elif levels:
            name = f"{half}samples.{level}.{kind}samples.{at}.{inner[2]}"
        else:
            name = f"{half}samples.{4 * int(level) + at}.{inner[2]}"
    for pattern, new in _VAE:
        name = re.sub(pattern, new, name)
    return name


def transformer(**changes: Any) -> Any:
    """A small Wan transformer of 16 latent channels whose heads are as wide as Wan's."""
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    config = dict(
        num_attention_heads=1,
        attention_head_dim=128,
        in_channels=LATENTS,
        out_channels=LATENTS,
        text_dim=DIM,
        ffn_dim=256,
        num_layers=3,
    )
    kind: Any = WanVACETransformer3DModel if "vace_layers" in changes else WanTransformer3DModel
    made: Any = kind(**{**config, **changes}).eval()
    randomise(made)
    return made


def as_loaded(model: Any) -> Any:
    """What `from_pretrained` of bf16 makes: some weights are in fp32."""
    for name, parameter in model.named_parameters():
        if any(part in name.split(".") for part in model._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    return model


def fp8_scaled(model: Any, named: Tensors) -> Tensors:
    """Matrices of blocks in eight bits with a scale beside each; `model` gets what they mean."""
    made, own = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}, model.state_dict()
    for name, weight in named.items():
        made[name] = weight
        if weight.dim() == 2 and "block" in name and "bias" not in name:
            scale = weight.abs().max().float() / 448
            made[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
            made[name.removesuffix("weight") + "scale_weight"] = scale.reshape(1)
            means = made[name].to(torch.bfloat16) * scale.to(torch.bfloat16)
            next(t for t in own.values() if t.data_ptr() == weight.data_ptr()).copy_(means)
    return {name: tensor.clone() for name, tensor in made.items()}


def write_gguf(path: Path, model: Any, named: Tensors) -> None:
    """Matrices of blocks as Q8_0, the rest as tools leave it; `model` gets what they mean."""
    writer, own = gguf.GGUFWriter(path, "wan"), model.state_dict()
    for name, weight in named.items():
        if weight.dim() == 2 and "blocks" in name and "modulation" not in name:
            raw = gguf.quants.quantize(weight.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            means = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q8_0)
            place = next(t for t in own.values() if t.data_ptr() == weight.data_ptr())
            place.copy_(torch.from_numpy(means.copy()))
        elif weight.dim() == 5:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(weight.shape))
            flat = weight.float().view(-1, *weight.shape[2:]).numpy().astype(np.float32)
            writer.add_tensor(name, flat)
        else:
            writer.add_tensor(name, weight.float().numpy().astype(np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()


def words_in_gguf(rows: int) -> tuple[list[str], list[float], list[int], bytes]:
    """The same words as entries of a GGUF header; llama.cpp fills them up to the table's rows."""
    more = [f"[PAD{number}]" for number in range(len(PIECES), rows)]
    kinds = [_KINDS.get(piece, 1) for piece in PIECES] + [5] * len(more)
    scores = [-float(number) for number in range(len(PIECES))] + [-10000.0] * len(more)
    return [*PIECES, *more], scores, kinds, b""


def spiece() -> torch.Tensor:
    """A SentencePiece model of the words of the tests, as the tensor that encoders carry."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    def piece(text: str, score: float, kind: int) -> bytes:
        told = field(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        return field(1, told + bytes([3 << 3, kind]))

    data = b"".join(piece(p, -float(n), _KINDS.get(p, 1)) for n, p in enumerate(PIECES))
    data += field(2, bytes([3 << 3, 1]))  # a Unigram model
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).clone()


def write(
    folder: Path, kind: str, model: str = "t2v", *, heavy: bool = False
) -> tuple[dict[str, Path], Any]:
    """Files of a model, and diffusers' pipeline of what they hold.

    `kind`: "bf16", "fp8_scaled" or "gguf" of transformer and encoder, "experts" for two in bf16.
    `model`: one of `MODELS`; those on "-experts" have two transformers in any kind. `heavy`: with
    twelve blocks of 8 MB each in bf16, which counts beside what a process takes.
    """
    torch.manual_seed(7)
    folder.mkdir(parents=True, exist_ok=True)
    two = kind == "experts" or model.endswith("-experts")
    names = ("wan_high_noise", "wan_low_noise") if two else ("wan",)
    text = 32 if kind == "gguf" else DIM
    files = {
        name: folder / f"{name}.{'gguf' if kind == 'gguf' else 'safetensors'}" for name in names
    }
    made = [_write_transformer(file, kind, model, text, heavy) for file in files.values()]
    encoder = text_encoder(ROWS, text).bfloat16()
    pixels = vae(**(WAN_22 if model.startswith("ti2v") else {}))
    randomise(encoder)
    files |= {
        "encoder": _write_encoder(folder, encoder, kind),
        "pixels": folder / "pixels.safetensors",
    }
    save_file(vendor_vae(pixels), files["pixels"])
    parts = {
        "tokenizer": tokenizer(),
        "text_encoder": encoder,
        "vae": pixels,
        "transformer": made[0],
    }
    parts["scheduler"] = scheduler(5.0 if model.startswith("ti2v") else 3.0)
    if two:
        parts |= {"transformer_2": made[1], "boundary_ratio": 0.9 if "i2v" in model else 0.875}
    if model in WITH_CLIP:
        parts["image_encoder"] = clip()
        files["clip"] = folder / "clip.safetensors"
        # As it is published; transformers itself writes no prefix any more.
        prefix = "" if model == "flf" else "vision_model."
        named = {prefix + n: t for n, t in parts["image_encoder"].state_dict().items()}
        save_file(named, files["clip"])
    return files, _pipeline(model, parts)


def _pipeline(model: str, parts: dict[str, Any]) -> Any:
    import diffusers
    from transformers import CLIPImageProcessor

    kinds = {"vace": "WanVACEPipeline", "v2v": "WanVideoToVideoPipeline"}
    name = kinds.get(model, "WanPipeline")
    if model in FROM_IMAGES:
        name = "WanImageToVideoPipeline"
        parts = {"image_encoder": None, "image_processor": CLIPImageProcessor(), **parts}
    if model.startswith("ti2v"):
        parts["expand_timesteps"] = True
    if model == "vace":
        parts["transformer_2"] = None
    return getattr(diffusers, name)(**parts)


def clip() -> Any:
    """As wide as a CLIP whose heads are known, and two layers deep."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=768, intermediate_size=64, num_hidden_layers=2, num_attention_heads=12,
        image_size=224, patch_size=14,
    )  # fmt: skip
    return CLIPVisionModel(config).eval()


def _write_transformer(file: Path, kind: str, model: str, text: int, heavy: bool) -> Any:
    """What diffusers loads of the file that is written."""
    changes = {**_CHANGES.get(model.removesuffix("-experts"), {}), "text_dim": text}
    made = transformer(**changes | ({"num_layers": 12, "ffn_dim": 16384} if heavy else {}))
    for parameter in made.parameters():  # buffers stay in fp32, as a loader leaves them
        parameter.data = parameter.data.bfloat16()
    named = {PREFIX + to_original_key(n): t for n, t in made.state_dict().items()}
    if kind == "gguf":
        write_gguf(file, made, {n.removeprefix(PREFIX): t for n, t in named.items()})
    else:
        save_file(fp8_scaled(made, named) if kind == "fp8_scaled" else named, file)
    return as_loaded(made)


def _write_encoder(folder: Path, encoder: Any, kind: str) -> Path:
    """`encoder` gets what the file means."""
    if kind == "gguf":
        path = folder / "encoder.gguf"
        means = write_encoder(path, encoder, "Q8_0", words_in_gguf(ROWS))
        encoder.load_state_dict(means, strict=False)
        return path
    named = {k: v for k, v in encoder.state_dict().items() if "embed_tokens" not in k}
    named = fp8_scaled(encoder, named) if kind == "fp8_scaled" else named
    save_file({**named, "spiece_model": spiece()}, folder / "encoder.safetensors")
    return folder / "encoder.safetensors"


def lora(path: Path, seed: int) -> Path:
    """A LoRA on one layer, written if it is not there."""
    draw = torch.Generator().manual_seed(seed)
    layer = "diffusion_model.blocks.1.self_attn.q"
    down, up = (torch.randn(*s, generator=draw) for s in ((2, 128), (128, 2)))
    if not path.exists():
        save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, path)
    return path
