"""The seam to the wrapper pack: every internal of it that block swap works through, by name.

Nothing of that pack is imported. It is found through the class of a model's transformer, and what
its functions work with is read from their code: a version that lacks a name here keeps its own
block swap, and says so.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from ..host_code.words import words_of

_HOME = ".wanvideo.modules.model"  # where the pack keeps the class of its transformer

LOAD, INIT, OFFLOAD = "load_weights", "init_blockswap", "offload_transformer"
# What the sampler writes on the transformer at each run, from the arguments of the clone it runs.
COUNTS = ("blocks_to_swap", "vace_blocks_to_swap")
SETTINGS = (
    *COUNTS,
    "prefetch_blocks",
    "use_non_blocking",
    "block_swap_debug",
    "offload_txt_emb",
    "offload_img_emb",
)
ATTRIBUTES = (*SETTINGS, "blocks", "vace_layers", "main_device", "offload_device", "patched_linear")
PIPELINE = ("sd", "auto_cpu_offload")

# Function, the module that defines it, its first parameters, and the words its code works with.
FUNCTIONS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    LOAD: ("nodes_model_loading", ("transformer", "sd"), (*COUNTS, "named_parameters")),
    INIT: (
        "utils",
        ("transformer", "block_swap_args", "model"),
        ("patched_linear", "block_swap", *COUNTS),
    ),
    OFFLOAD: ("utils", ("transformer",), ("patched_linear", "blocks")),
}
CALLERS = ("nodes_sampler",)  # modules that call all three by these names

# What a LoRA that is not merged hangs on a linear as buffers, which only its own forward reads.
LORA_BUFFERS = "lora_diff_"
# Parts of a block that the transformer runs outside of the block's own forward.
OUTSIDE = (
    "before_proj",
    "after_proj",
    "fuser_block",
    "control_blocks_dense",
    "control_blocks_sparse",
    "control_combine_linears",
)


@dataclass(frozen=True, slots=True)
class Pack:
    """One installed version of the pack, by the name under which ComfyUI has loaded it."""

    root: str

    def module(self, name: str) -> ModuleType | None:
        return sys.modules.get(f"{self.root}.{name}")

    def function(self, name: str) -> Callable[..., Any] | None:
        """One of FUNCTIONS as its module has it."""
        home = self.module(FUNCTIONS[name][0])
        found: Callable[..., Any] | None = getattr(home, name, None)
        return found


def pack_of(model: Any) -> Pack | None:
    """The pack that made a model, or None where it keeps its transformer elsewhere."""
    home = type(bare_transformer(model)).__module__
    return Pack(home.removesuffix(_HOME)) if home.endswith(_HOME) else None


def bare_transformer(model: Any) -> Any:
    """The transformer of a patcher, without a compiled module around it."""
    transformer = getattr(getattr(model, "model", None), "diffusion_model", None)
    return getattr(transformer, "_orig_mod", transformer)


def pipeline_of(model: Any) -> dict[str, Any]:
    """What the pack keeps beside the transformer of a patcher."""
    pipeline: dict[str, Any] | None = getattr(getattr(model, "model", None), "pipeline", None)
    return pipeline or {}


def missing(model: Any) -> str | None:
    """The first name of this page that a model's pack lacks."""
    pack = pack_of(model)
    if pack is None:
        return f"a transformer class in *{_HOME}"
    return next(_missing_on(model), None) or missing_in(pack, type(bare_transformer(model)))


def missing_in(pack: Pack, cls: Any = None) -> str | None:
    """The first that a pack lacks, whatever the model; `cls`: that of its transformer."""
    if cls is None:
        cls = getattr(pack.module(_HOME[1:]), "WanModel", None)
    return next(_missing_from(pack, cls), None)


def registered_pack(loader: Any) -> Pack:
    """The pack whose loader node is of this class."""
    return Pack(loader.__module__.rpartition(".")[0])


def _missing_on(model: Any) -> Iterator[str]:
    transformer = bare_transformer(model)
    for name in ATTRIBUTES:
        if not hasattr(transformer, name):
            yield f"transformer.{name}"
    if not isinstance(getattr(transformer, "blocks", None), torch.nn.ModuleList):
        yield "transformer.blocks as a module list"
    for name in PIPELINE:
        if name not in pipeline_of(model):
            yield f"model[{name!r}]"


def _missing_from(pack: Pack, cls: Any) -> Iterator[str]:
    for name, (_, parameters, words) in FUNCTIONS.items():
        yield from _lacks(name, pack.function(name), parameters, words)
    for name in COUNTS:  # its loop must be one that a count of nothing stops
        if not any(name in words_of(getattr(cls, of, None)) for of in ("forward", "forward_vace")):
            yield f"{name} in its forward"
    yield from _lacks("block_swap", getattr(cls, "block_swap", None), (), ("blocks_to_swap",))
    for caller in CALLERS:
        for name in FUNCTIONS:
            if getattr(pack.module(caller), name, None) is not pack.function(name):
                yield f"{caller}.{name}"


def _lacks(
    name: str, function: Any, parameters: tuple[str, ...], words: tuple[str, ...]
) -> Iterator[str]:
    if not callable(function):
        yield name
        return
    function = inspect.unwrap(function)
    if tuple(inspect.signature(function).parameters)[: len(parameters)] != parameters:
        yield f"{name}({', '.join(parameters)})"
    for word in words:
        if word not in words_of(function):
            yield f"{word} in {name}"
