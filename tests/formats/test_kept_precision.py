"""LoRAs on what diffusers' class keeps in fp32: the sum is not rounded to the file's 16 bits.

Inside a block such a tensor computes as it is stored where nothing is added to it.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from files import build, inputs, weights
from safetensors.torch import save_file

from blockswap import BlockSwapArgs, open_transformer
from blockswap.forecast import find_model
from blockswap.lora.file import open_lora
from blockswap.lora.request import Lora
from blockswap.stream.device import open_device
from blockswap.swap.entry.checkpoint_file import Request, source_of
from blockswap.swap.entry.checkpoint_file import find_model as found_model

STRENGTH = 0.7
# A LoRA's key, the tensor that it changes, and whether the class keeps that in fp32.
CHANGED = {
    "blocks.0.norm3.diff": ("blocks.0.norm2.weight", True),
    "blocks.1.norm3.diff_b": ("blocks.1.norm2.bias", True),
    "blocks.2.modulation.diff": ("blocks.2.scale_shift_table", True),
    "blocks.0.diff_m": ("blocks.0.scale_shift_table", True),
    "head.modulation.diff": ("scale_shift_table", True),
    "time_embedding.0.diff_b": ("condition_embedder.time_embedder.linear_1.bias", True),
    "blocks.1.self_attn.norm_q.diff": ("blocks.1.attn1.norm_q.weight", False),
    "blocks.0.ffn.0.diff_b": ("blocks.0.ffn.net.0.proj.bias", False),
}


class Differences:
    """A file that adds something to each of some tensors."""

    def __init__(self, folder: Path, keys: tuple[str, ...] = tuple(CHANGED)) -> None:
        draw, shapes = torch.Generator().manual_seed(1), weights("t2v")
        self.path = folder / "differences.safetensors"
        self.added = {k: torch.randn(shapes[CHANGED[k][0]].shape, generator=draw) for k in keys}
        save_file(self.added, self.path)

    def added_to(self, folder: Path, dtype: torch.dtype) -> Any:
        """The model as diffusers loads it, with each sum in fp32 and rounded once."""
        model = WanTransformer3DModel.from_pretrained(folder, torch_dtype=dtype)
        parameters = dict(model.named_parameters())
        sums: dict[str, torch.Tensor] = {}
        for key, difference in self.added.items():
            label, kept = CHANGED[key]
            assert (parameters[label].dtype == torch.float32) == kept
            sums.setdefault(label, parameters[label].detach().float())
            sums[label] = sums[label] + difference * STRENGTH
        for label, total in sums.items():
            parameters[label].data = total.to(parameters[label].dtype)
        return model


def folder_of(where: Path, dtype: torch.dtype) -> Path:
    build("t2v").save_config(where)
    held = {key: tensor.to(dtype) for key, tensor in weights("t2v").items()}
    save_file(held, where / "diffusion_pytorch_model.safetensors")
    return where


def run(model: Any, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    given = inputs("t2v", device)
    for name, value in given.items():
        if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16:
            given[name] = value.to(dtype)
    with torch.no_grad():
        output: torch.Tensor = model(**given)[0].cpu()
    return output


@pytest.mark.parametrize("device", ["cpu", "sim-lazy"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "args", [{"blocks": "0-2"}, {"blocks": "1"}, {"blocks": "0-2", "ram_budget": "1GiB"}]
)
def test_sums_are_not_rounded_where_the_class_keeps_fp32(
    args: dict[str, Any], dtype: torch.dtype, device: torch.device, tmp_path: Path
) -> None:
    folder, differences = folder_of(tmp_path, dtype), Differences(tmp_path)
    expected = run(differences.added_to(folder, dtype).to(device), device, dtype)
    asked = [(differences.path, STRENGTH)]
    model = open_transformer(folder, BlockSwapArgs(**args), device=device, loras=asked)
    with model.blockswap:
        assert torch.equal(run(model, device, dtype), expected)


@pytest.mark.parametrize("key", CHANGED)
def test_files_changed_between_forwards(key: str, tmp_path: Path) -> None:
    """Without LoRAs the block has again what it had, and is as large."""
    cpu, dtype = torch.device("cpu"), torch.bfloat16
    folder, differences = folder_of(tmp_path, dtype), Differences(tmp_path, (key,))
    expected = run(differences.added_to(folder, dtype), cpu, dtype)
    label, kept = CHANGED[key]
    model = open_transformer(folder, BlockSwapArgs(blocks="0-2"), device=cpu)
    with model.blockswap as swap:
        plain, dtypes = run(model, cpu, dtype), {n: p.dtype for n, p in model.named_parameters()}
        nbytes = swap.plan.device_bytes
        for _ in range(2):
            swap.set_loras([(differences.path, STRENGTH)])
            assert torch.equal(run(model, cpu, dtype), expected)
            assert dict(model.named_parameters())[label].dtype == (torch.float32 if kept else dtype)
            swap.set_loras([])
            assert torch.equal(run(model, cpu, dtype), plain)
            assert {n: p.dtype for n, p in model.named_parameters()} == dtypes
            assert swap.plan.device_bytes == nbytes


@pytest.mark.parametrize("key", CHANGED)
def test_a_forecast_counts_them_as_they_compute(key: str, tmp_path: Path) -> None:
    folder, differences = folder_of(tmp_path, torch.bfloat16), Differences(tmp_path, (key,))
    lora = Lora(differences.path, STRENGTH)
    told = {unit.name: unit for unit in find_model(str(folder), loras=[open_lora(lora)]).units}
    asked = Request(loras=(lora,))
    opened = found_model(source_of(folder), BlockSwapArgs(), open_device("cpu"), asked)
    for unit in opened.basis.facts.units:
        if unit.kind == "block":
            ours = told[unit.name]
            assert ours.resident_bytes == unit.resident_bytes
            assert ours.ram_slab_bytes == unit.ram_slab_bytes
            assert ours.decode_bytes == unit.decode_bytes
