"""LoRA files of every kind and spelling, and the reference: PEFT's own layers, merged in fp32."""

import re

import torch
from diffusers import WanTransformer3DModel
from peft import LoHaConfig, LoKrConfig, LoraConfig
from peft.tuners.loha.layer import Linear as LoHaLinear
from peft.tuners.lokr.layer import Linear as LoKrLinear
from peft.tuners.lora.layer import Conv3d as LoraConv
from peft.tuners.lora.layer import Linear as LoraLinear
from safetensors.torch import save_file

from blockswap.layout.geometry import to_original_key

BLOCKS, WIDTH, FFN = 4, 64, 128
LAYERS = ("blocks.0.attn1.to_q", "blocks.1.ffn.net.0.proj", "blocks.1.ffn.net.2",
          "blocks.2.attn2.to_out.0", "blocks.3.attn1.to_k", "condition_embedder.time_proj",
          "proj_out")  # fmt: skip
KINDS = ("lora", "alpha", "dora", "loha", "lokr", "lokr factors", "diff", "bias")


def tiny_model(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        ffn_dim=FFN,
        num_layers=BLOCKS,
        text_dim=WIDTH,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.05)
    return model.to(dtype)


def forward(model, device, dtype=torch.float32, seed=1, frames=3):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 16, frames, 8, 8, generator=draw).to(device, dtype),
            timestep=torch.full((1,), 500, device=device),
            encoder_hidden_states=torch.randn(1, 5, WIDTH, generator=draw).to(device, dtype),
            return_dict=False,
        )[0].cpu()


def parts(kind, out, inside, draw, rank=4):
    """The tensors of one layer's adapter, under the ends of their keys."""

    def some(*shape):
        return torch.randn(shape, generator=draw) * 0.2

    def low():
        return {"lora_A.weight": some(rank, inside), "lora_B.weight": some(out, rank)}

    made = {
        "lora": low,
        "alpha": lambda: {**low(), "alpha": torch.tensor(3.0)},
        "dora": lambda: {
            **low(), "alpha": torch.tensor(2.0), "dora_scale": some(out, 1).abs() + 0.5,
        },
        "loha": lambda: {
            "hada_w1_a": some(out, rank), "hada_w1_b": some(rank, inside),
            "hada_w2_a": some(out, rank), "hada_w2_b": some(rank, inside),
            "alpha": torch.tensor(1.5),
        },
        "lokr": lambda: {"lokr_w1": some(4, 4), "lokr_w2": some(out // 4, inside // 4)},
        "lokr factors": lambda: {
            "lokr_w1": some(4, 4), "lokr_w2_a": some(out // 4, rank),
            "lokr_w2_b": some(rank, inside // 4), "alpha": torch.tensor(2.5),
        },
        "diff": lambda: {"diff": some(out, inside)},
        "bias": lambda: {**low(), "diff_b": some(out)},
    }  # fmt: skip
    return made[kind]()


def adapter(kind, seed, layers=LAYERS, rank=4):
    """`{layer: {end: tensor}}` for a tiny model."""
    draw, model = torch.Generator().manual_seed(seed), tiny_model()
    return {
        layer: parts(kind, *model.get_submodule(layer).weight.shape, draw, rank) for layer in layers
    }


def spelled(layer, end, spelling):
    """A key as a program writes it."""
    original = to_original_key(layer)
    if spelling == "original":
        return f"diffusion_model.{original}.{end}"
    if spelling == "diffusers":
        return f"transformer.{layer}.{end}"
    if spelling == "peft":
        return f"base_model.model.{layer}.{end}"
    end = re.sub(r"^lora_A", "lora_down", re.sub(r"^lora_B", "lora_up", end))
    if spelling == "kohya":
        return f"lora_unet_{original.replace('.', '_')}.{end}"
    if spelling == "lycoris":
        return f"lycoris_{layer.replace('.', '_')}.{end}"
    return f"{original}.{end}"


SPELLINGS = ("original", "diffusers", "peft", "kohya", "lycoris", "bare")


def saved(folder, base, seed=0):
    """A tiny model's folder, written in dtype `base`."""
    tiny_model(base, seed).save_pretrained(folder)
    return folder


def write(path, adapters, spelling="original", dtype=torch.float32, metadata=None):
    tensors = {
        spelled(layer, end, spelling): tensor.to(dtype) if end != "alpha" else tensor
        for layer, ends in adapters.items()
        for end, tensor in ends.items()
    }
    save_file(tensors, path, metadata=metadata)
    return path


@torch.no_grad()
def reference(folder, wanted, dtype=torch.float32, of_lora=torch.float32):
    """The model of `folder` in fp32 with adapters `[(adapters, strength)]` merged, cast once.

    Cast to the dtypes in which diffusers computes with the file, in memory of its own: what is
    mapped from a file may lie at addresses at which fp32 kernels give other last bits.
    """
    wide = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float32)
    model = WanTransformer3DModel.from_pretrained(folder, torch_dtype=dtype)
    for adapters, strength in wanted:
        for layer, ends in adapters.items():
            stored = {
                end: tensor if end == "alpha" else tensor.to(of_lora).float()
                for end, tensor in ends.items()
            }
            _merge(wide.get_submodule(layer), stored, strength)
    for parameter, merged in zip(model.parameters(), wide.parameters(), strict=True):
        parameter.data = torch.empty_like(parameter).copy_(merged)
    return model


def _merge(linear, ends, strength):
    alpha = float(ends["alpha"]) if "alpha" in ends else None
    if "lora_A.weight" in ends:
        rank = ends["lora_A.weight"].shape[0]
        dora = "dora_scale" in ends
        made = LoraLinear if linear.weight.dim() == 2 else LoraConv
        layer = made(
            linear, "a", LoraConfig(use_dora=dora), r=rank, lora_alpha=alpha or rank, use_dora=dora
        )
        layer.lora_A["a"].weight.copy_(ends["lora_A.weight"])
        layer.lora_B["a"].weight.copy_(ends["lora_B.weight"])
        if dora:
            layer.lora_magnitude_vector["a"].weight.copy_(ends["dora_scale"].view(-1))
        layer.set_scale("a", strength)
        layer.merge()
    elif "hada_w1_a" in ends:
        rank = ends["hada_w1_b"].shape[0]
        layer = LoHaLinear(linear, "a", LoHaConfig(), r=rank, alpha=alpha or rank)
        _merge_lycoris(layer, ends, strength)
    elif "lokr_w1" in ends:
        rank = ends["lokr_w2_b"].shape[0] if "lokr_w2_b" in ends else 10**6
        layer = LoKrLinear(linear, "a", LoKrConfig(), r=rank, alpha=alpha or rank)
        for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"):
            table = getattr(layer, name)
            if "a" in table:
                del table["a"]
            if name in ends:
                table["a"] = torch.nn.Parameter(ends[name])
        layer.set_scale("a", strength)
        layer.merge()
    if "diff" in ends:
        linear.weight += ends["diff"] * strength
    if "diff_b" in ends:
        linear.bias += ends["diff_b"] * strength


def _merge_lycoris(layer, ends, strength):
    for name, tensor in ends.items():
        if name != "alpha":
            getattr(layer, name)["a"].copy_(tensor)
    layer.set_scale("a", strength)
    layer.merge()
