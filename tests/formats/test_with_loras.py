"""LoRAs on packed weights: decoded as without them, then merged in fp32 as PEFT merges."""

import copy
from typing import Any

import pytest
import torch
from files import Shelf, forward
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from safetensors.torch import save_file

from blockswap import BlockSwapArgs, open_transformer

LAYERS = ("blocks.0.attn1.to_q", "blocks.1.ffn.net.2", "blocks.2.attn2.to_v", "proj_out")
NAMES = ("fp8", "fp8-scale_weight", "fp8-blocks", "comfy-int8-rotated", "comfy-mxfp8",
         "gguf-Q8_0", "gguf-mixed")  # fmt: skip
STRENGTHS = (0.8, -0.4)


def factors(model: Any, seed: int) -> dict[str, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for layer in LAYERS:
        out, inside = model.get_submodule(layer).weight.shape
        made[layer] = {
            "A": torch.randn(4, inside, generator=draw) * 0.2,
            "B": torch.randn(out, 4, generator=draw) * 0.2,
            "magnitude": torch.rand(out, generator=draw) + 0.5,
        }
    return made


@torch.no_grad()
def merge(weight: torch.Tensor, part: dict[str, torch.Tensor], strength: float, dora: bool) -> None:
    """Merges into `weight` (fp32) with PEFT's layer."""
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.copy_(weight)
    layer = Linear(linear, "a", LoraConfig(use_dora=dora), r=4, lora_alpha=4, use_dora=dora)
    layer.lora_A["a"].weight.copy_(part["A"])
    layer.lora_B["a"].weight.copy_(part["B"])
    if dora:
        layer.lora_magnitude_vector["a"].weight.copy_(part["magnitude"])
    layer.set_scale("a", strength)
    layer.merge()
    weight.copy_(linear.weight)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora first"])
@pytest.mark.parametrize(
    ("name", "device"),
    [(name, ("cpu", "sim-eager", "sim-lazy")[n % 3]) for n, name in enumerate(NAMES)],
    indirect=["device"],
)
def test_two_loras_on_packed_weights(
    name: str, dora: bool, device: torch.device, packed_files: Shelf, tmp_path: Any
) -> None:
    plain = packed_files.plain(name, "t2v", torch.device("cpu"))
    whole = copy.deepcopy(plain)
    loras = []
    wide = {layer: whole.get_submodule(layer).weight.float() for layer in LAYERS}
    for number, strength in enumerate(STRENGTHS):
        made = factors(whole, number)
        tensors = {}
        for layer, part in made.items():
            merge(wide[layer], part, strength, dora and not number)
            tensors[f"{layer}.lora_A.weight"] = part["A"]
            tensors[f"{layer}.lora_B.weight"] = part["B"]
            if dora and not number:
                tensors[f"{layer}.dora_scale"] = part["magnitude"]
        save_file(tensors, tmp_path / f"{number}.safetensors")
        loras.append((tmp_path / f"{number}.safetensors", strength))
    for layer, weight in wide.items():
        whole.get_submodule(layer).weight.data = weight.to(torch.bfloat16)
    expected = forward(whole.to(device), "t2v", device)
    assert not torch.equal(expected, forward(plain, "t2v", torch.device("cpu")))
    args = BlockSwapArgs(blocks="0,1", prefetch_blocks=1)
    path = packed_files.file(name, "t2v")
    opened: Any = open_transformer(path, args, device=device, loras=loras)
    with opened.blockswap:
        for _ in range(2):
            assert torch.equal(forward(opened, "t2v", device), expected)
