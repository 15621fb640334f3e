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

from blockswap.layout.geometry import to_original_key
from llama_cpp_files import write_encoder

LATENTS = 16  # those of Wan 2.1; what latents are scaled by is known for no other
PREFIX = "model.diffusion_model."
Tensors = dict[str, torch.Tensor]
PIECES = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS[3:]), "▁", *"abcdefgh"]
_KINDS = {"<pad>": 3, "</s>": 3, "<unk>": 2}  # control and unknown ones, as SentencePiece counts
ROWS = 500
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
    from diffusers import WanTransformer3DModel

    config = dict(
        num_attention_heads=1,
        attention_head_dim=128,
        in_channels=LATENTS,
        out_channels=LATENTS,
        text_dim=DIM,
        ffn_dim=256,
        num_layers=3,
    )
    made: Any = WanTransformer3DModel(**{**config, **changes}).eval()
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


def write(folder: Path, kind: str) -> tuple[dict[str, Path], Any]:
    """Files of a text-to-video model, and diffusers' pipeline of what they hold.

    `kind`: "bf16", "fp8_scaled" or "gguf" of transformer and encoder, "experts" for two in bf16.
    """
    from diffusers import WanPipeline

    torch.manual_seed(7)
    folder.mkdir(parents=True, exist_ok=True)
    names = ("wan_high_noise", "wan_low_noise") if kind == "experts" else ("wan",)
    models, files = [], {}
    for name in names:
        model = transformer(text_dim=32 if kind == "gguf" else DIM)
        for parameter in model.parameters():  # buffers stay in fp32, as a loader leaves them
            parameter.data = parameter.data.bfloat16()
        named = {PREFIX + to_original_key(n): t for n, t in model.state_dict().items()}
        files[name] = folder / f"{name}.{'gguf' if kind == 'gguf' else 'safetensors'}"
        if kind == "gguf":
            write_gguf(files[name], model, {n.removeprefix(PREFIX): t for n, t in named.items()})
        else:
            save_file(fp8_scaled(model, named) if kind == "fp8_scaled" else named, files[name])
        models.append(as_loaded(model))
    encoder, pixels = text_encoder(ROWS, 32 if kind == "gguf" else DIM).bfloat16(), vae()
    randomise(encoder)
    files |= {
        "encoder": _write_encoder(folder, encoder, kind),
        "pixels": folder / "pixels.safetensors",
    }
    save_file(vendor_vae(pixels), files["pixels"])
    pipe = WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=encoder,
        vae=pixels,
        scheduler=scheduler(),
        transformer=models[0],
        transformer_2=models[1] if len(models) > 1 else None,
        boundary_ratio=0.875 if len(models) > 1 else None,
    )
    return files, pipe


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
