"""What a checkpoint file holds, in ComfyUI's words, and which tensor of the file each word is.

ComfyUI rewrites what older quantised files say before it builds a model, and a quantised weight of
its own consists of several tensors of the file. Here the file is seen through that code, on meta
tensors: what became of each of its tensors is known, and one that nothing consumed is an error.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ...adapters.live import places_of
from ...errors import ModelError
from ...layout.checkpoint import Checkpoint
from ...layout.prefix import is_meaningless
from ...layout.values import Leaf, TensorSpec
from ...store.leaves import leaf_tensors, rebuild, torch_dtype
from ..seams import gguf_pack, host_checkpoints
from ..seams.gguf import on_meta

# What the host reads while it decides; everything else is seen by its shape alone.
_READ = (".comfy_quant", ".scale_input")
Read = Callable[[str, Leaf], torch.Tensor]


@dataclass(frozen=True, slots=True)
class FileContents:
    """The transformer's tensors of a file, on meta but for what says how a layer is quantised.

    `weights` is by the host's key; `origins` names the file's key (without prefix) of each.
    """

    checkpoint: Checkpoint
    weights: dict[str, torch.Tensor]
    origins: Mapping[str, str]

    @contextmanager
    def reading(self) -> Iterator[Read]:
        """Reads tensors of the file, each as one leaf of the model has it."""
        from safetensors import safe_open

        checkpoint = self.checkpoint
        if checkpoint.in_gguf:
            yield _mapped_reader(checkpoint)
            return
        with safe_open(checkpoint.paths[0], framework="pt") as file:

            def read(key: str, leaf: Leaf) -> torch.Tensor:
                stored: torch.Tensor = file.get_tensor(checkpoint.prefix + key)
                wanted = torch_dtype(leaf.dtype)
                if leaf.path and stored.dtype == torch.uint8 and wanted.itemsize == 1:
                    stored = stored.view(wanted)
                return stored.to(wanted).reshape(leaf.shape)

            yield read


def contents_of(checkpoint: Checkpoint) -> FileContents:
    """The file as the host sees it. Reads the header and the words on quantisation.

    Raises ModelError for a GGUF file without the pack that ComfyUI has them from.
    """
    if checkpoint.in_gguf:
        return _contents_of_gguf(checkpoint)
    named, prefix = _named(checkpoint), checkpoint.prefix
    file_key = {id(tensor): name.removeprefix(prefix) for name, tensor in named.items()}
    kept = list(named.values())  # an identity is one for as long as its tensor lives
    # As the host does it: under the file's names first, then under the bare ones.
    made = host_checkpoints.converted(dict(named), checkpoint.metadata)
    bare = {key.removeprefix(prefix): tensor for key, tensor in made.items()}
    made = host_checkpoints.converted(bare, checkpoint.metadata)
    origins = {key: file_key[id(t)] for key, t in made.items() if id(t) in file_key}
    weights = {
        key: tensor if key.endswith(".comfy_quant") else tensor.to("meta")
        for key, tensor in made.items()
    }
    del kept
    return FileContents(checkpoint, weights, origins)


def _contents_of_gguf(checkpoint: Checkpoint) -> FileContents:
    """A GGUF file as its pack reads it: which tensors, of which type and shape, is the pack's."""
    weights = {}
    for name, tensor in gguf_pack.read(checkpoint).items():
        key = name.removeprefix(checkpoint.prefix)
        if not is_meaningless(key):
            weights[key] = on_meta(tensor)
    unread = [tensor.name for key, tensor in checkpoint.tensors.items() if key not in weights]
    unknown = [key for key in weights if key not in checkpoint.tensors]
    for names, fact in ((unread, "that its pack does not read"), (unknown, "under other names")):
        if names:
            raise ModelError(
                f"{checkpoint.label} holds {len(names)} tensors {fact}, such as {names[0]}: "
                f"use {gguf_pack.LOADER} with WanVideo Block Swap behind it"
            )
    return FileContents(checkpoint, weights, {key: key for key in weights})


def as_the_model_has_it(read: Read, spec: TensorSpec, keys: Sequence[str]) -> Any:
    """A weight, of the parts that the file holds under `keys`."""
    return rebuild(spec, [read(key, leaf) for key, leaf in zip(keys, spec.leaves, strict=True)])


def _mapped_reader(checkpoint: Checkpoint) -> Read:
    """Reads tensors of a GGUF file: the bytes of packed ones, numbers of any other."""
    (header,) = checkpoint.headers
    size = header.file_bytes
    mapped = torch.from_file(str(header.path), shared=False, size=size, dtype=torch.uint8)

    def read(key: str, leaf: Leaf) -> torch.Tensor:
        stored = checkpoint.tensors[key]
        found = mapped[stored.offset : stored.offset + stored.nbytes]
        wanted = torch_dtype(leaf.dtype)
        if wanted != torch.uint8:
            found = found.view(torch_dtype(stored.dtype))
        return found.to(wanted, copy=True).reshape(leaf.shape)

    return read


def _named(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every tensor of the transformer by its name in the file, also those that few models have."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    with safe_open(checkpoint.paths[0], framework="pt") as file:
        for tensor in (t for header in checkpoint.headers for t in header.tensors):
            key = tensor.name.removeprefix(checkpoint.prefix)
            if not tensor.name.startswith(checkpoint.prefix) or is_meaningless(key):
                continue
            found[tensor.name] = (
                file.get_tensor(tensor.name)
                if tensor.name.endswith(_READ)
                else torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype), device="meta")
            )
    return found


def file_keys(root: torch.nn.Module, contents: FileContents) -> dict[str, tuple[str, ...]]:
    """The file's keys for the leaves of each meta parameter of the host's model, by its label."""
    found = {}
    for place in places_of(root):
        tensor: torch.Tensor = place.table[place.name]
        if tensor.device.type != "meta":
            continue
        names: tuple[str | None, ...] = (place.label,)
        if is_traceable_wrapper_subclass(tensor):
            parts = host_checkpoints.stored_names(place.label, tensor)
            names = tuple(parts.get(id(leaf)) for _, leaf in leaf_tensors(tensor))
        keys = tuple(contents.origins.get(name or "") for name in names)
        if None in keys:
            raise ModelError(
                f"{contents.checkpoint.label}: of {place.label} it is not known where each part "
                "rests in the file: use ComfyUI's own loader with WanVideo Block Swap behind it"
            )
        found[place.label] = tuple(key for key in keys if key is not None)
    return found


def refuse_unused(checkpoint: Checkpoint, contents: FileContents, unexpected: list[str]) -> None:
    """Raises ModelError where the model has no place for a tensor of the file."""
    unused = [contents.origins[key] for key in unexpected if key in contents.origins]
    if unused:
        raise ModelError(
            f"{checkpoint.label} holds {len(unused)} tensors that this ComfyUI's model of it does "
            f"not use, such as {unused[0]}, so its latents would be wrong: update ComfyUI, or use "
            "a bf16, fp16 or fp8_scaled checkpoint"
        )
