"""Modules: this module owns one checkpoint made of a model's file and of modules' files over it.

VACE and audio modules come as files of their own, without the model that they go onto. Joined, the
tensors are as in a file that holds all of them; what a file says of itself (formats, prefix) counts
for its own tensors alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

from ...errors import CheckpointError, GeometryError
from ..checkpoint import STATED_PREFIX, Checkpoint, StoredTensor
from ..quoting import quote, some
from .naming import naming_of, to_diffusers_key, to_original_key

# A whole model has it, a module has not.
_WHOLE = "patch_embedding.weight"
# Says of a whole file that it is scaled fp8.
_MARK = "scaled_fp8"
# What a base's config.json says that modules change.
_CHANGED = ("_class_name", "model_type", "vace_layers", "vace_in_channels", "vace_in_dim")


def joined(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """The checkpoint of all of them, the model's first and its modules behind, in any order given.

    Each is taken as its weights (`unpacked`), or as it is stored. Raises CheckpointError or
    GeometryError.
    """
    if len(checkpoints) == 1:
        return checkpoints[0]
    whole = [checkpoint for checkpoint in checkpoints if _WHOLE in checkpoint.tensors]
    if len(whole) != 1:
        labels = some([checkpoint.label for checkpoint in whole or checkpoints])
        what = "each of which is a whole model" if whole else "none of which is a whole model"
        raise GeometryError(
            f"{labels} were given together, {what}: give one model's file and those of modules "
            "that go onto it (for models that are used in turn: open_experts)"
        )
    base = whole[0]
    made = replace(base, config=_config(base), modules_from=len(base.headers))
    for module in checkpoints:
        if module is not base:
            made = _with(made, module)
    return made


def _with(base: Checkpoint, module: Checkpoint) -> Checkpoint:
    """`base` with the tensors of `module` in its spelling."""
    first = len(base.headers)
    respelt = to_diffusers_key if naming_of(base.tensors) == "diffusers" else to_original_key
    tensors = dict(base.tensors)
    twice = []
    for key, tensor in module.tensors.items():
        name = respelt(key)
        if name == _MARK and name in tensors:
            continue  # said of both
        if name in tensors:
            twice.append(tensor.name)
        tensors[name] = _moved(tensor, name, first)
    if twice:
        raise GeometryError(
            f"{module.label} holds {len(twice)} tensors that {base.label} has, too "
            f"({some(twice)}): a module's file has only what it adds, give that"
        )
    return replace(
        base,
        label=f"{base.label} + {module.label}",
        headers=(*base.headers, *module.headers),
        tensors=MappingProxyType(tensors),
        left_out=(*base.left_out, *module.left_out),
        metadata=MappingProxyType(_metadata(base, module)),
        notes=(*base.notes, *module.notes),
    )


def _moved(tensor: StoredTensor, key: str, first: int) -> StoredTensor:
    """The tensor where its file stands `first` places further back."""
    packing = tensor.packing
    if packing is not None:
        parts = tuple(_moved(part, part.key, first) for part in packing.parts)
        packing = replace(packing, parts=parts)
    return replace(tensor, key=key, shard=tensor.shard + first, packing=packing)


def _config(base: Checkpoint) -> MappingProxyType[str, object] | None:
    if base.config is None:
        return None
    return MappingProxyType({k: v for k, v in base.config.items() if k not in _CHANGED})


def _metadata(base: Checkpoint, module: Checkpoint) -> dict[str, str]:
    for key, value in module.metadata.items():
        said = base.metadata.get(key, value)
        if key.startswith(STATED_PREFIX) and said != value:
            raise CheckpointError(
                f"{base.label} says {key} = {quote(said)} and {module.label} {quote(value)}: the "
                "module goes onto another model"
            )
    return {**module.metadata, **base.metadata}
