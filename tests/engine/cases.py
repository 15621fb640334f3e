"""The models, inputs, checkpoints and references that the engine's tests share.

A reference is always the output of the unswapped model on the same device. Masters and references
are made once per session; every test gets a deep copy that it may spoil.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from wan_models import MiniWan, WanModel

from blockswap import BlockSwapArgs, Swap, open_transformer, swap_blocks

DTYPES = ("fp32", "bf16", "fp16", "mixed")
STORES = ("ram", "disk")
SIM_STORES = ("ram", "pageable", "disk", "file-ram", "file-both")
FAMILIES = ("mini", "original", "original-i2v", "original-vace", "diffusers", "diffusers-vace")
SHAPES = ((1, 3, 8, 8), (2, 1, 4, 6), (1, 2, 8, 4))  # batch, frames, height, width

_TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FP32_PARTS = ("norm", "modulation", "scale_shift_table", "time_embedd", "norm1", "norm2", "norm3")
_DIFFUSERS: Mapping[str, Any] = dict(
    num_attention_heads=3,
    attention_head_dim=16,
    in_channels=4,
    out_channels=4,
    text_dim=32,
    freq_dim=32,
    ffn_dim=96,
    num_layers=6,
)


def _build(family: str) -> nn.Module:
    if family == "mini":
        return MiniWan()
    if family == "original":
        return WanModel()
    if family == "original-i2v":
        return WanModel(image_dim=40)
    if family == "original-vace":
        return WanModel(vace=(0, 2, 4))
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    if family == "diffusers":
        return WanTransformer3DModel(**_DIFFUSERS)
    return WanVACETransformer3DModel(**_DIFFUSERS, vace_layers=[0, 2, 4], vace_in_channels=8)


def cast(model: nn.Module, dtype: str) -> nn.Module:
    """Casts parameters (never buffers: rope tables stay as they were computed).

    What diffusers' class keeps in fp32 stays so, as its `from_pretrained` leaves it.
    """
    kept = getattr(type(model), "_keep_in_fp32_modules", None) or ()
    for name, parameter in model.named_parameters():
        keep = dtype == "mixed" and any(part in name for part in _FP32_PARTS)
        keep = keep or any(part in name.split(".") for part in kept)
        parameter.data = parameter.data.to(
            torch.float32 if keep else _TORCH_DTYPES.get(dtype, torch.bfloat16)
        )
    return model


@functools.cache
def _master(family: str, dtype: str) -> nn.Module:
    torch.manual_seed(1234)
    return cast(_build(family).eval(), dtype)


def fresh(family: str, dtype: str = "fp32") -> nn.Module:
    """A model on the CPU that the test may do anything to; equal weights every time."""
    return copy.deepcopy(_master(family, dtype))


def skeleton(family: str) -> nn.Module | None:
    """A module on the meta device to open a checkpoint into; None where the engine builds it."""
    if family.startswith("diffusers"):
        return None
    with torch.device("meta"):
        return _build(family).eval()


def inputs(family: str, device: torch.device, *, shape: int = 0) -> dict[str, torch.Tensor]:
    """Keyword arguments of one forward; `shape` chooses among `SHAPES`."""
    batch, frames, height, width = SHAPES[shape]
    draw = torch.Generator().manual_seed(99 + shape)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=draw).to(device)

    if family == "mini":
        return {"x": noise(batch, frames * height, 4), "context": noise(batch, 8)}
    video = noise(batch, 4, frames, height, width)
    text = noise(batch, 5 + shape, 32)
    time = torch.linspace(900, 100, batch).to(device)
    if family.startswith("original"):
        given = {"x": video, "t": time, "context": text}
        if family == "original-i2v":
            given["clip_fea"] = noise(batch, 7, 40)
        if family == "original-vace":
            given["vace_context"] = noise(batch, 8, frames, height, width)
        return given
    given = {"hidden_states": video, "timestep": time, "encoder_hidden_states": text}
    if family == "diffusers-vace":
        given["control_hidden_states"] = noise(batch, 8, frames, height, width)
        given["control_hidden_states_scale"] = torch.tensor([1.0, 0.5, 0.25]).to(device)
    return given


def forward(model: nn.Module, family: str, device: torch.device, *, shape: int = 0) -> torch.Tensor:
    """One forward with the shape's inputs, brought to the CPU. Grad must be off around it."""
    given = inputs(family, device, shape=shape)
    if family.startswith("diffusers"):
        dtype = bare(model).patch_embedding.weight.dtype
        given = {
            name: value if name == "timestep" else value.to(dtype) for name, value in given.items()
        }
        return model(**given, return_dict=False)[0].cpu()
    return model(**given).cpu()


def bare(model: nn.Module) -> Any:
    return getattr(model, "_orig_mod", model)


@functools.cache
def _references(family: str, dtype: str, device: str, autocast: bool) -> tuple[torch.Tensor, ...]:
    where = torch.device(device)
    model = fresh(family, dtype).to(where)
    with torch.no_grad(), torch.autocast(where.type, torch.bfloat16, enabled=autocast):
        found = tuple(forward(model, family, where, shape=i) for i in range(len(SHAPES)))
    assert all(torch.isfinite(out.float()).all() for out in found)
    return found


def reference(
    family: str,
    device: torch.device,
    *,
    dtype: str = "fp32",
    shape: int = 0,
    autocast: bool = False,
) -> torch.Tensor:
    """What the unswapped model computes on this device."""
    return _references(family, dtype, str(device), autocast)[shape]


def metadata(family: str) -> dict[str, str]:
    known = {"wan.num_heads": "3"}
    return known | {"wan.vace_layers": "0,2,4"} if "vace" in family else known


class Shelf:
    """Checkpoints on disk, written once per session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[tuple[str, str], Path] = {}

    def file(self, family: str, dtype: str = "fp32") -> Path:
        """A single file in the model's own names, as safetensors writes it."""
        key = (family, dtype)
        if key not in self._written:
            path = self._folder / f"{family}-{dtype}.safetensors"
            save_file(_master(*key).state_dict(), path, metadata=metadata(family))
            self._written[key] = path
        return self._written[key]


@contextmanager
def opened(
    store: str,
    family: str,
    device: torch.device,
    args: Mapping[str, Any],
    *,
    dtype: str = "fp32",
    shelf: Shelf,
) -> Iterator[tuple[nn.Module, Swap]]:
    """A swapped model whose streamed units rest in `store`, closed at the end."""
    if store in ("ram", "pageable"):
        extra = {"ram_budget": unit_bytes(family, dtype) // 3} if store == "pageable" else {}
        model = fresh(family, dtype)
        swap = swap_blocks(model, BlockSwapArgs(**args, **extra), device=device)
    else:
        extra = {}
        if store == "file-ram":
            extra = {"ram_budget": "1GiB"}
        if store == "file-both":  # two staging buffers, and about half of the units beside them
            extra = {"ram_budget": 2 * 1024 * 1024 if family != "mini" else 48 * 1024}
        model = open_transformer(
            shelf.file(family, dtype),
            BlockSwapArgs(**args, **extra),
            device=device,
            skeleton=skeleton(family),
        )
        swap = model.blockswap  # type: ignore[assignment]
    try:
        yield model, swap
    finally:
        swap.close()


def unit_bytes(family: str, dtype: str = "fp32") -> int:
    """Bytes of all blocks."""
    blocks = _master(family, dtype).blocks
    return sum(p.nbytes for p in blocks.parameters())  # type: ignore[union-attr]


def stores(device: torch.device) -> Sequence[str]:
    """The stores that exist on a device."""
    return STORES if device.type == "cpu" else SIM_STORES


def expect_refusal(call: Callable[[], object], error: type[Exception], *words: str) -> str:
    """Calls, expects `error`, and checks that its one sentence holds all of `words`."""
    try:
        call()
    except error as refused:
        text = str(refused)
        missing = [word for word in words if word not in text]
        assert not missing, f"{missing} not in: {text}"
        assert "\n" not in text
        return text
    raise AssertionError(f"{error.__name__} was expected and did not come")
