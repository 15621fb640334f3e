"""Small Wan models in every format as files, and beside each the plain model that it stands for."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from packed import FORMATS, GGUF_KINDS, gguf_blocks
from safetensors.torch import load_file, save_file

from blockswap.convert.weights import decoded
from blockswap.layout.checkpoint import Checkpoint, StoredTensor

PLAIN = ("bf16", "fp32 shards")
PACKED = (*FORMATS, *(f"gguf-{kind}" for kind in GGUF_KINDS), "gguf-mixed")
NAMES = (*PLAIN, *PACKED)
MODELS: dict[str, Any] = {
    "t2v": {},
    "i2v": dict(image_dim=40, added_kv_proj_dim=256),
    "vace": dict(vace_layers=[0, 2], vace_in_channels=8),
}
_SIZES: dict[str, Any] = dict(
    num_attention_heads=2,
    attention_head_dim=128,
    in_channels=4,
    out_channels=4,
    text_dim=32,
    freq_dim=32,
    ffn_dim=512,
    num_layers=3,
)


def build(model: str) -> Any:
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

    made: Any = WanVACETransformer3DModel if model == "vace" else WanTransformer3DModel
    return made(**_SIZES, **MODELS[model]).eval()


@functools.cache
def without_data(model: str) -> Any:
    with torch.device("meta"):
        return build(model)


def weights(model: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(11)
    return {
        name: torch.rand(tensor.shape, generator=draw).sub_(0.5).mul_(0.3)
        for name, tensor in without_data(model).state_dict().items()
    }


def is_packed(name: str, tensor: torch.Tensor) -> bool:
    """What quantisers take: the matrices of the blocks."""
    blocks = name.startswith(("blocks.", "vace_blocks."))
    return blocks and name.endswith(".weight") and tensor.dim() == 2


class Shelf:
    """Files made once a session; `file` and `plain` are folders with a config.json."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models: dict[tuple[str, str, str], Any] = {}

    def file(self, name: str, model: str) -> Path:
        self._make(name, model)
        return self._folder / name / model

    def plain(self, name: str, model: str, device: torch.device) -> Any:
        """The model of the weights as the format's own package dequantises them."""
        key = (name, model, str(device))
        if key not in self._models:
            self._make(name, model)
            folder = self._folder / name / f"{model}-plain"
            made: Any = type(without_data(model))
            loaded = made.from_pretrained(folder, torch_dtype=torch.bfloat16)
            self._models[key] = loaded.to(device)
        return self._models[key]

    def stored(self, name: str, model: str) -> dict[str, torch.Tensor]:
        """What the format's own package dequantises the file's tensors to."""
        self._make(name, model)
        plain = self._folder / name / f"{model}-plain"
        return load_file(plain / "diffusion_pytorch_model.safetensors")

    def _make(self, name: str, model: str) -> None:
        stored, plain = self._folder / name / model, self._folder / name / f"{model}-plain"
        if stored.exists():
            return
        for folder in (stored, plain):
            folder.mkdir(parents=True)
            without_data(model).save_config(folder)
        write = _write_gguf if name.startswith("gguf-") else _write
        reference = (_write_plain if name in PLAIN else write)(stored, name, model)
        save_file(reference, plain / "diffusion_pytorch_model.safetensors")


def _write_plain(folder: Path, name: str, model: str) -> dict[str, torch.Tensor]:
    """Nothing quantised: in bf16, or in fp32 as the vendors' shards are."""
    dtype = torch.bfloat16 if name == "bf16" else torch.float32
    tensors = {key: tensor.to(dtype) for key, tensor in weights(model).items()}
    if name == "bf16":
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        return tensors
    places = {key: f"diffusion_pytorch_model-{1 + n % 2:05d}-of-00002.safetensors"
              for n, key in enumerate(tensors)}  # fmt: skip
    for file in set(places.values()):
        save_file({k: t for k, t in tensors.items() if places[k] == file}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def _write(folder: Path, name: str, model: str) -> dict[str, torch.Tensor]:
    parts: dict[str, torch.Tensor] = dict(FORMATS[name].marks())
    reference = {}
    for key, tensor in weights(model).items():
        if is_packed(key, tensor):
            made, reference[key] = FORMATS[name].pack(tensor, torch.bfloat16)
            layer = key.removesuffix("weight")
            parts |= {layer + end: part.contiguous().clone() for end, part in made.items()}
        else:
            parts[key] = reference[key] = tensor.to(torch.bfloat16)
    save_file(parts, folder / "diffusion_pytorch_model.safetensors")
    return reference


def kind_of(name: str, key: str) -> str:
    """The block type of a matrix; in a mixed file each layer has another one."""
    kind = name.removeprefix("gguf-")
    return GGUF_KINDS[sum(key.encode()) % len(GGUF_KINDS)] if kind == "mixed" else kind


def _write_gguf(folder: Path, name: str, model: str) -> dict[str, torch.Tensor]:
    # The mixed one is split into several files.
    parts = 40 if name == "gguf-mixed" else 0
    writer = gguf.GGUFWriter(folder / "model.gguf", "wan", split_max_tensors=parts)
    writer.add_quantization_version(2)
    reference = {}
    for key, tensor in weights(model).items():
        if is_packed(key, tensor):
            kind = gguf.GGMLQuantizationType[kind_of(name, key)]
            raw = gguf_blocks(kind.name, tensor)
            writer.add_tensor(key, raw, raw_dtype=kind)
            found = torch.from_numpy(gguf.quants.dequantize(raw, kind).copy())
            reference[key] = found.to(torch.bfloat16)
            continue
        reference[key] = _add_plain(writer, key, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return reference


def _add_plain(writer: Any, key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Matrices in BF16, what has one axis in F32, convolutions in F16 with four axes."""
    if tensor.dim() == 2:
        half = tensor.to(torch.bfloat16)
        raw = half.view(torch.uint8).numpy()
        writer.add_tensor(key, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        return half
    if tensor.dim() == 5:
        writer.add_array(f"comfy.gguf.orig_shape.{key}", list(tensor.shape))
        half = tensor.to(torch.float16)
        writer.add_tensor(key, half.view(-1, *tensor.shape[2:]).numpy())
        return half
    writer.add_tensor(key, tensor.numpy().astype(np.float32))
    return tensor


def weight_of(
    checkpoint: Checkpoint, tensor: StoredTensor, dtype: str = "bfloat16"
) -> torch.Tensor:
    """What a packed weight is decoded to, from nothing but its own ranges of the files."""
    assert tensor.packing is not None

    def read(part: StoredTensor, into: bytearray) -> None:
        with checkpoint.paths[part.shard].open("rb") as file:
            file.seek(part.offset)
            assert file.readinto(into) == part.nbytes

    return decoded(tensor.packing, tensor.shape, dtype, read)


def inputs(model: str, device: torch.device, *, seed: int = 3) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(torch.bfloat16).to(device)

    given: dict[str, Any] = dict(
        hidden_states=drawn(1, 4, 2, 8, 8), encoder_hidden_states=drawn(1, 7, 32)
    )
    if model == "vace":
        given["control_hidden_states"] = drawn(1, 8, 2, 8, 8)
    if model == "i2v":
        given["encoder_hidden_states_image"] = drawn(1, 257, 40)
    return given | dict(timestep=torch.tensor([437], device=device), return_dict=False)


def forward(model: Any, kind: str, device: torch.device) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(**inputs(kind, device))[0].cpu()
    return out


Files = Callable[[], Shelf]
