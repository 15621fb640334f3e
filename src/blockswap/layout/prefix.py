"""Prefixes: this module owns which names of a file belong to the transformer, and their bare form.

A name may carry a prefix: one of three, or wrappers of a training framework around each other.
The one that most of the transformer's names carry is *the* prefix: names that carry it lose it.
Other names are kept as they are when they start like a Wan transformer's (`blocks.0...`, beside
`model.blocks.1...`); the rest, such as the VAE and the text encoder of a full checkpoint, is left
out; so are markers and padding (`PADDING`). Two names with the same bare form are an error.
"""

from collections import Counter
from collections.abc import Iterable

from ..errors import CheckpointError
from .quoting import quote

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
# What compilers, data parallelism and pipelines put before a name, in any order and nesting. It
# counts only where a name of the transformer follows: others (a text encoder) use it, too.
_WRAPPERS = frozenset({"model", "diffusion_model", "transformer", "module", "_orig_mod"})

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

# What trainers and repackagers put beside a model and no layer owns: tensors of these very names,
# and `model_type.` with a model's name behind it.
_MARKERS = frozenset({"model_type", "step", "global_step", "epoch", "freqs", "ema_decay"})
_MARKER_STEM = "model_type."

# Tensors of zeros that `blockswap convert` puts before a block so that it starts on a page.
PADDING = "blockswap_padding"


def is_padding(name: str) -> bool:
    """Whether a tensor means nothing and only fills a file up: `[prefix.]blockswap_padding.7`."""
    return name.split(".")[-2:-1] == [PADDING]


def is_marker(name: str) -> bool:
    """Whether a tensor, with or without a prefix, is a trainer's or repackager's note."""
    parts = name.split(".")
    own = ".".join(parts[next((n for n, part in enumerate(parts) if part not in _WRAPPERS), 0) :])
    return own in _MARKERS or own.startswith(_MARKER_STEM)


def is_meaningless(key: str) -> bool:
    """Whether a key (without prefix) is padding or a trainer's note, which no model reads."""
    return is_padding(key) or is_marker(key)


def common_prefix(names: Iterable[str]) -> str:
    """The known prefix that most of a transformer's names carry, of equals the longest; where
    none carries one, the longest known prefix of any name, or the empty string."""
    names = tuple(names)
    carried = Counter(prefix for name in names if (prefix := _wrapping(name)))
    if carried:
        return max(carried, key=lambda prefix: (carried[prefix], len(prefix)))
    return next((p for p in PREFIXES if any(name.startswith(p) for name in names)), "")


def transformer_prefix(name: str) -> str | None:
    """What stands before a transformer's own name; None where none of it is in the name."""
    prefix = _wrapping(name)
    return prefix if name[len(prefix) :].split(".", 1)[0] in ROOTS else None


def _wrapping(name: str) -> str:
    """The wrappers before a transformer's own name, or nothing where none of it follows."""
    parts = name.split(".")
    count = next((n for n, part in enumerate(parts) if part not in _WRAPPERS), len(parts))
    own = count < len(parts) and parts[count] in ROOTS
    return "".join(f"{part}." for part in parts[:count]) if own else ""


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
            if is_marker(key):
                continue
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
