"""LoRA files for the small models of this folder, and PEFT's own layers that merge them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from files import without_data
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from safetensors.torch import save_file

# Each LoRA as a file, with its strength, for a kind of model.
LoraFiles = Callable[[str], dict[str, tuple[Path, float]]]
LAYERS = ("blocks.0.attn1.to_q", "blocks.1.ffn.net.2", "blocks.2.attn2.to_v", "proj_out")
# By name: strength, whether it is a DoRA, seed, rank.
FILES: dict[str, tuple[float, bool, int, int]] = {
    "dora": (0.8, True, 0, 4),
    "lora": (-0.4, False, 1, 4),
    "other": (0.6, False, 2, 8),
    "4steps_high": (1.0, False, 3, 4),
    "style": (0.7, False, 4, 8),
}
# Which LoRAs a clip begins with, and which it ends with.
LORAS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "none": ((), ()),
    "two": (("dora", "lora"), ("dora", "lora")),
    "changed": (("lora",), ("other", "lora")),
}


@functools.cache
def factors(model: str, name: str) -> dict[str, dict[str, torch.Tensor]]:
    _, dora, seed, rank = FILES[name]
    draw, made, empty = torch.Generator().manual_seed(seed), {}, without_data(model)
    for layer in LAYERS:
        out, inside = empty.get_submodule(layer).weight.shape
        made[layer] = {
            "lora_A.weight": torch.randn(rank, inside, generator=draw) * 0.2,
            "lora_B.weight": torch.randn(out, rank, generator=draw) * 0.2,
        }
        if dora:
            made[layer]["dora_scale"] = torch.rand(out, generator=draw) + 0.5
    return made


def write_loras(folder: Path, model: str) -> dict[str, tuple[Path, float]]:
    """Each LoRA as a file, with its strength."""
    found = {}
    for name, (strength, *_) in FILES.items():
        parts = factors(model, name)
        tensors = {f"{layer}.{end}": t for layer, ends in parts.items() for end, t in ends.items()}
        save_file(tensors, folder / f"{name}.safetensors")
        found[name] = folder / f"{name}.safetensors", strength
    return found


@torch.no_grad()
def merge_into(
    model: Any,
    stored: Mapping[str, torch.Tensor],
    names: Sequence[str],
    strengths: Sequence[float] | None = None,
) -> None:
    """Merges LoRAs into weights as they are `stored`, in fp32, then casts once."""
    kind = "vace" if hasattr(model, "vace_blocks") else "t2v"
    for layer in LAYERS:
        weight = stored[f"{layer}.weight"].to(torch.float32, copy=True)
        own_strengths = [FILES[name][0] for name in names]
        for name, strength in zip(names, strengths or own_strengths, strict=True):
            _merge(weight, factors(kind, name)[layer], name, strength)
        own = model.get_submodule(layer).weight
        own.data.copy_(weight)


def _merge(
    weight: torch.Tensor, parts: Mapping[str, torch.Tensor], name: str, strength: float
) -> None:
    _, dora, _, rank = FILES[name]
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.copy_(weight)
    layer = Linear(linear, "a", LoraConfig(use_dora=dora), r=rank, lora_alpha=rank, use_dora=dora)
    layer.lora_A["a"].weight.copy_(parts["lora_A.weight"])
    layer.lora_B["a"].weight.copy_(parts["lora_B.weight"])
    if dora:
        layer.lora_magnitude_vector["a"].weight.copy_(parts["dora_scale"])
    layer.set_scale("a", strength)
    layer.merge()
    weight.copy_(linear.weight)
