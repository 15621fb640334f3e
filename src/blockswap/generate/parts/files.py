"""Which part of a pipeline a weight file is, by the tensors in its header and never by its name."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ...adapters.hosts.encoder_files import (
    LLAMA_CPP_SIGN,
    encoder_dtype,
    in_library_names,
    t5_config,
)
from ...adapters.hosts.image_encoder_files import clip_config
from ...adapters.hosts.stored_rows import rows_by_name
from ...adapters.hosts.vae_files import is_wan_vae, vae_config
from ...errors import CheckpointError
from ...layout.checkpoint import Checkpoint, open_checkpoint, whole_checkpoint
from ...layout.formats import unpacked
from ...layout.geometry import infer_geometry
from ...layout.gguf_header import is_gguf, read_gguf_header
from ...layout.header import read_header
from ...layout.shards import INDEX_SUFFIX, find_files
from .components import TOKENIZER_IN_FILE, TRANSFORMERS, VAE, WEIGHTS, Part
from .spiece import carries_tokenizer

_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors")
PICKLES = (".pth", ".pt", ".ckpt", ".bin")
MODULE = "VACE module"
# Tensors by which each kind of file is known, whatever stands before their names.
_SIGNS: Mapping[str, re.Pattern[str]] = {
    "transformer": re.compile(r"(^|\.)patch_embedding\.weight$"),
    MODULE: re.compile(r"(^|\.)vace_patch_embedding\.weight$"),
    "text encoder": re.compile(
        rf"^((shared|token_embedding)\.weight|{re.escape(LLAMA_CPP_SIGN)})$"
    ),
    "image encoder": re.compile(r"^vision_model\.embeddings\.class_embedding$"),
    "VAE": re.compile(r"^(first_stage_model\.|vae\.)?decoder\.(middle|mid|mid_block|conv_in)\."),
}
_LORA = re.compile(r"\.(lora_(A|B|down|up)|lokr_w\d|hada_w\d_a)(\.|$)|^lora_")


def checkpoints_in(folder: Path) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """What can be opened among the files of a folder itself, each with the files it consists of."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    sets: dict[str, list[Path]] = {}
    for file in files:
        if file.suffix.lower() in WEIGHTS:
            shard = _SHARD.fullmatch(file.name)
            sets.setdefault(shard[1] if shard else file.name, []).append(file)
    for stem, members in sets.items():
        if stem == members[0].name:
            yield members[0], (members[0],)
            continue
        index = folder / f"{stem}{INDEX_SUFFIX}"
        yield (index if index.exists() else folder), tuple(members)


def part_of_file(path: Path, members: tuple[Path, ...] = ()) -> tuple[str, Part]:
    """The role of a file (or of an index or set of shards) and the part that it is.

    Raises CheckpointError for a file that is no part of a Wan pipeline, and what reading its
    header raises.
    """
    role = role_of_file(path)
    if role not in _MADE:
        raise CheckpointError(f"{path} {_BESIDE.get(role) or _strange(path)}")
    return role, _MADE[role](path, members or (path,))


def role_of_file(path: Path) -> str:
    """What a file is: a role, "LoRA", a module, or nothing known. Raises CheckpointError."""
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(refusal_of_pickles([path]))
    names = _names(path)
    if any(_LORA.search(name) for name in names):
        return "LoRA"
    found = [role for role, sign in _SIGNS.items() if any(map(sign.search, names))]
    return found[0] if found else ""


def refusal_of_pickles(files: list[Path]) -> str:
    """Why none of them is read, and what to give instead."""
    names = ", ".join(str(file) for file in files)
    return (
        f"{names}: a pickle runs code when it is read and is never loaded here: give the same "
        "model as safetensors, as ComfyUI's repackaged files have it"
    )


def tokenizer_in(encoder: Part) -> Part | None:
    """The tokenizer that a repackaged encoder file carries with it; None where it has none."""
    if encoder.source != "file" or not carries_tokenizer(encoder.path):
        return None
    return Part(encoder.path, TOKENIZER_IN_FILE, {}, "file", encoder.members)


def _names(path: Path) -> tuple[str, ...]:
    if is_gguf(path):
        return tuple(tensor.name for tensor in read_gguf_header(path).tensors)
    if path.is_file() and not path.name.endswith(INDEX_SUFFIX):
        return tuple(tensor.name for tensor in read_header(path).tensors)
    found = find_files(path)
    return tuple(tensor.name for file in found.files for tensor in read_header(file).tensors)


def _strange(path: Path) -> str:
    if any(name.startswith(("enc.blk.", "token_embd.")) for name in _names(path)):
        return (
            "is a language model in llama.cpp's names, and Wan reads texts with UMT5's encoder: "
            "give that, such as umt5-xxl-encoder-Q8_0.gguf"
        )
    return (
        "is no transformer, text encoder, image encoder or VAE of Wan: give one of them, or leave "
        "it out"
    )


def _transformer(path: Path, members: tuple[Path, ...]) -> Part:
    geometry = infer_geometry(unpacked(open_checkpoint(path)))
    config = {
        "in_channels": geometry.in_channels,
        "out_channels": geometry.out_channels,
        "text_dim": geometry.text_dim,
        "image_dim": geometry.image_dim,
        "pos_embed_seq_len": geometry.pos_embed_seq_len,
    }
    return Part(path, TRANSFORMERS[bool(geometry.vace_layers)], config, "file", members)


def _text_encoder(path: Path, members: tuple[Path, ...]) -> Part:
    checkpoint = _whole(path)
    class_name, config = t5_config(path.name, in_library_names(rows_by_name(checkpoint)))
    return Part(path, class_name, {**config, "dtype": encoder_dtype(checkpoint)}, "file", members)


def _vae(path: Path, members: tuple[Path, ...]) -> Part:
    shapes = {key: tensor.shape for key, tensor in _whole(path).tensors.items()}
    if not is_wan_vae(shapes):
        raise CheckpointError(
            f"{path} is the VAE of another family, and Wan's latents are decoded by Wan's: give "
            "wan_2.1_vae or wan2.2_vae"
        )
    return Part(path, VAE, vae_config(path, shapes), "file", members)


def _image_encoder(path: Path, members: tuple[Path, ...]) -> Part:
    shapes = {key: tensor.shape for key, tensor in _whole(path).tensors.items()}
    return Part(path, "CLIPVisionModel", clip_config(path, shapes), "file", members)


def _whole(path: Path) -> Checkpoint:
    return unpacked(whole_checkpoint(find_files(path)))


# What goes onto a model, by how it is given.
_BESIDE = {
    "LoRA": "holds a LoRA: give it by --lora",
    MODULE: "holds a module that goes onto a model: give it by --module",
}
_MADE: Mapping[str, Callable[[Path, tuple[Path, ...]], Part]] = {
    "transformer": _transformer,
    "text encoder": _text_encoder,
    "image encoder": _image_encoder,
    "VAE": _vae,
}
