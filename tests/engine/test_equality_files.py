"""Checkpoints as they come: cast on arrival, other names, shards, prefixes, odd offsets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Shelf, forward, fresh, metadata, reference, skeleton
from safetensors.torch import save_file
from torch import nn

from blockswap import BlockSwapArgs, open_transformer
from blockswap.errors import GeometryError
from blockswap.layout.geometry import to_original_key

ARGS = {"blocks_to_swap": 5}


def opened_equals(
    path: Path,
    family: str,
    device: torch.device,
    expected: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    **args: Any,
) -> Any:
    """Opens, runs twice, compares; returns the plan."""
    model = open_transformer(
        path,
        BlockSwapArgs(**{**ARGS, **args}),
        device=device,
        dtype=dtype,
        skeleton=skeleton(family),
    )
    swap: Any = model.blockswap
    try:
        for _ in range(2):
            with torch.no_grad():
                assert torch.equal(forward(model, family, device), expected)
        return swap.plan
    finally:
        swap.close()


def tiers(device: torch.device) -> list[dict[str, Any]]:
    """Arguments that put streamed blocks on disk, in RAM, or in both."""
    return [{}] if device.type == "cpu" else [{}, {"ram_budget": "1GiB"}, {"ram_budget": 450_000}]


@pytest.mark.parametrize("wanted", ["bf16", "fp16"])
@pytest.mark.parametrize("family", ["mini", "original"])
def test_fp32_file_computes_in_the_dtype_asked_for(
    family: str, wanted: str, device: torch.device, shelf: Shelf
) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[wanted]
    expected = reference(family, device, dtype=wanted)
    for extra in tiers(device):
        for prefetch in (0, 2):
            opened_equals(
                shelf.file(family),
                family,
                device,
                expected,
                dtype=dtype,
                prefetch_blocks=prefetch,
                **extra,
            )


def test_diffusers_class_keeps_in_fp32_what_it_asks_for(device: torch.device, shelf: Shelf) -> None:
    kept = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
    model = fresh("diffusers")
    for name, parameter in model.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.to(torch.bfloat16)
    with torch.no_grad():
        expected = forward(model.to(device), "diffusers", device)
    for extra in tiers(device):
        opened_equals(
            shelf.file("diffusers"), "diffusers", device, expected, dtype=torch.bfloat16, **extra
        )


def test_bf16_file_computes_in_fp32(device: torch.device, shelf: Shelf) -> None:
    model = fresh("mini", "bf16").float().to(device)
    with torch.no_grad():
        expected = forward(model, "mini", device)
    for extra in tiers(device):
        opened_equals(
            shelf.file("mini", "bf16"), "mini", device, expected, dtype=torch.float32, **extra
        )


@pytest.mark.parametrize("family", ["diffusers", "diffusers-vace"])
def test_original_names_open_into_a_diffusers_module(
    family: str, device: torch.device, tmp_path: Path
) -> None:
    tensors = {to_original_key(k): t for k, t in fresh(family, "mixed").state_dict().items()}
    assert "blocks.0.self_attn.q.weight" in tensors
    save_file(tensors, tmp_path / "wan.safetensors", metadata=metadata(family))
    expected = reference(family, device, dtype="mixed")
    for extra in tiers(device):
        opened_equals(
            tmp_path / "wan.safetensors",
            family,
            device,
            expected,
            vace_blocks_to_swap=2 if "vace" in family else None,
            **extra,
        )


@pytest.mark.parametrize("target", ["folder", "index"])
def test_sharded_checkpoint_is_bit_equal(target: str, device: torch.device, tmp_path: Path) -> None:
    """Tensors of one block lie in different shards."""
    state = fresh("diffusers").state_dict()
    stem = "diffusion_pytorch_model"
    names = [f"{stem}-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    owner = {key: names[number % 3] for number, key in enumerate(state)}
    for name in names:
        part = {key: state[key] for key in state if owner[key] == name}
        save_file(part, tmp_path / name, metadata=metadata("diffusers"))
    index = tmp_path / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": owner}))
    path = tmp_path if target == "folder" else index
    expected = reference("diffusers", device)
    for extra in tiers(device):
        opened_equals(path, "diffusers", device, expected, **extra)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "model."])
def test_prefixed_checkpoint_is_bit_equal(
    prefix: str, device: torch.device, tmp_path: Path
) -> None:
    """A full checkpoint: other models' tensors lie between the transformer's."""
    tensors = {prefix + k: t for k, t in fresh("original").state_dict().items()}
    tensors["first_stage_model.decoder.weight"] = torch.randn(77)
    tensors["cond_stage_model.shared.weight"] = torch.randn(31)
    save_file(tensors, tmp_path / "full.safetensors", metadata=metadata("original"))
    opened_equals(tmp_path / "full.safetensors", "original", device, reference("original", device))


def write_with_data_at(path: Path, tensors: dict[str, torch.Tensor], remainder: int) -> int:
    """A safetensors file whose data start at `remainder` modulo 16; returns where."""
    entries: dict[str, Any] = {"__metadata__": metadata("original")}
    data, codes = b"", {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8"}
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        entries[name] = {
            "dtype": codes[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    header = json.dumps(entries).encode()
    header += b" " * ((remainder - 8 - len(header)) % 16)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return 8 + len(header)


@pytest.mark.parametrize("remainder", [0, 8, 4])
def test_data_at_any_offset_is_bit_equal(
    remainder: int, device: torch.device, tmp_path: Path
) -> None:
    path = tmp_path / "odd.safetensors"
    assert write_with_data_at(path, fresh("original").state_dict(), remainder) % 16 == remainder
    opened_equals(path, "original", device, reference("original", device))


def test_tensors_after_one_of_odd_size_are_bit_equal(device: torch.device, tmp_path: Path) -> None:
    """Mixed dtypes and a stray int8 in front put every later tensor at an odd byte."""
    path = tmp_path / "odd.safetensors"
    tensors = {"vae.stray": torch.ones(3, dtype=torch.int8)}
    tensors |= {f"model.{k}": t for k, t in fresh("original", "mixed").state_dict().items()}
    start = write_with_data_at(path, tensors, 0)
    assert (start + 3) % 2 == 1
    opened_equals(path, "original", device, reference("original", device, dtype="mixed"))


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_vram_budget_from_one_slot_to_all_resident_is_bit_equal(
    share: float, slots: int, device: torch.device, shelf: Shelf
) -> None:
    everything = opened_equals(
        shelf.file("original"), "original", device, reference("original", device), blocks_to_swap=0
    ).device_bytes
    least = opened_equals(
        shelf.file("original"),
        "original",
        device,
        reference("original", device),
        blocks_to_swap=6,
        prefetch_blocks=0,
    ).device_bytes
    budget = int(least + share * (everything - least))
    plan = opened_equals(
        shelf.file("original"),
        "original",
        device,
        reference("original", device),
        vram_budget=budget,
        blocks_to_swap=6,
        prefetch_blocks=slots - 1,
    )
    assert plan.device_bytes <= budget
    assert bool(plan.streamed) is (share < 1)


def _without(state: dict[str, torch.Tensor]) -> None:
    del state["blocks.3.ffn.2.bias"]


def _reshaped(state: dict[str, torch.Tensor]) -> None:
    state["blocks.3.ffn.2.bias"] = torch.zeros(47)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without, ("blocks.3.ffn.2.bias", "lacks")),
        (_reshaped, ("blocks.3.ffn.2.bias", "[47]", "[48]")),
    ],
    ids=["a missing tensor", "another shape"],
)
def test_checkpoint_of_another_model_is_refused(
    change: Callable[[dict[str, torch.Tensor]], None],
    words: tuple[str, ...],
    device: torch.device,
    tmp_path: Path,
) -> None:
    state = fresh("original").state_dict()
    change(state)
    save_file(state, tmp_path / "other.safetensors", metadata=metadata("original"))
    model = skeleton("original")
    with pytest.raises(GeometryError) as refused:
        open_transformer(tmp_path / "other.safetensors", ARGS, device=device, skeleton=model)
    assert all(word in str(refused.value) for word in words)


def test_quantised_checkpoint_is_refused_without_a_skeleton(
    device: torch.device, tmp_path: Path
) -> None:
    state = fresh("diffusers").state_dict()
    state["blocks.0.ffn.net.2.scale_weight"] = torch.ones(())
    save_file(state, tmp_path / "scaled.safetensors", metadata=metadata("diffusers"))
    with pytest.raises(GeometryError, match="scales"):
        open_transformer(tmp_path / "scaled.safetensors", ARGS, device=device)


def test_opened_model_is_in_eval_mode_and_frozen(device: torch.device, shelf: Shelf) -> None:
    model = open_transformer(shelf.file("diffusers"), ARGS, device=device)
    assert isinstance(model, nn.Module)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.blockswap.close()  # type: ignore[union-attr, operator]
