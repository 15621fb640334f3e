"""Prefixes: this module owns which names of a file belong to the transformer, and their bare form.

A name may carry one of three prefixes. The longest that occurs anywhere in the checkpoint is *the*
prefix: names that carry it lose it. Other names are kept as they are when they start like a Wan
transformer's (`blocks.0...`, beside `model.blocks.1...`); the rest, such as the VAE and the text
encoder of a full checkpoint, is left out; so is padding (`PADDING`). Two names with the same bare
form are an error.
"""

from collections.abc import Iterable

from ..errors import CheckpointError
from .quoting import quote

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")

# First segments of Wan transformer names, original and diffusers, and of what fp8 files add.
ROOTS = frozenset(
    {
        "blocks",
        "vace_blocks",
        "patch_embedding",
        "vace_patch_embedding",
        "text_embedding",
        "time_embedding",
        "time_projection",
        "img_emb",
        "head",
        "condition_embedder",
        "scale_shift_table",
        "proj_out",
        "scaled_fp8",
    }
)


# Tensors of zeros that `blockswap convert` puts before a block so that it starts on a page.
PADDING = "blockswap_padding"


def is_padding(name: str) -> bool:
    """Whether a tensor means nothing and only fills a file up: `[prefix.]blockswap_padding.7`."""
    return name.split(".")[-2:-1] == [PADDING]


def common_prefix(names: Iterable[str]) -> str:
    """The longest known prefix that any of the names carries, or the empty string."""
    names = tuple(names)
    return next((p for p in PREFIXES if any(name.startswith(p) for name in names)), "")


def bare_keys(label: str, names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The prefix, and for each name that belongs to the transformer its key without it.

    Returns `(prefix, {name in the file: key})`. Raises CheckpointError when two names collide.
    """
    names = tuple(names)
    prefix = common_prefix(names)
    keys: dict[str, str] = {}
    owner: dict[str, str] = {}
    for name in names:
        if is_padding(name):
            continue
        if name.startswith(prefix):
            key = name[len(prefix) :]
        elif name.split(".", 1)[0] in ROOTS:
            key = name
        else:
            continue
        if key in owner:
            raise CheckpointError(
                f"{label} holds {quote(key)} twice, as {quote(owner[key])} and as {quote(name)}: "
                "use a checkpoint with one of them"
            )
        owner[key] = name
        keys[name] = key
    return prefix, keys
