"""How a tensor or quantised subclass is split into plain arrays and rebuilt, or refused.

An ordinary tensor is its own leaf. A traceable wrapper subclass (quantised tensors of torchao,
comfy-kitchen and others) says through torch's `__tensor_flatten__` protocol which inner tensors
it consists of; those are taken apart in turn. The engine moves leaves and never asks what a
tensor means.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import ModelError
from ..layout.dtypes import ITEM_BYTES
from ..layout.values import Leaf, Likeness, Recipe, TensorSpec, contiguous_stride

_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` -> `"bfloat16"`."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    """`"bfloat16"` -> `torch.bfloat16`. Raises ModelError for a type this torch does not have."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ModelError(
            f"dtype {name} is stored, and torch {torch.__version__} does not know it: use a newer "
            "torch, or a file in another dtype"
        )
    return dtype


def leaf_tensors(tensor: torch.Tensor) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """Yields (path, plain tensor) for every leaf, in the order of `spec_of(...).leaves`."""
    if not is_traceable_wrapper_subclass(tensor):
        yield (), tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        for path, leaf in leaf_tensors(getattr(tensor, name)):
            yield (name, *path), leaf


def bare_copy(leaf: torch.Tensor) -> torch.Tensor:
    """A copy of a leaf's bytes as a plain tensor; a subclass may call itself its own clone."""
    with torch._C.DisableTorchFunctionSubclass():
        return torch.Tensor.clone(torch.Tensor.detach(leaf))


def version_of(tensor: torch.Tensor) -> int:
    """How often the tensor was written to; -1 for one made in inference mode, which keeps none."""
    try:
        return tensor._version
    except RuntimeError:
        return -1


def spec_of(name: str, tensor: torch.Tensor, *, label: str | None = None) -> TensorSpec:
    """Describes a live tensor; `label` is its full name for messages.

    Raises ModelError for a tensor whose bytes cannot be laid out.
    """
    label = label or name
    _refuse_opaque(label, tensor)
    leaves = tuple(_leaf_of(label, path, leaf) for path, leaf in leaf_tensors(tensor))
    alike = _is_noted(tensor)
    recipe = Likeness(type(tensor)) if alike else _recipe_of(tensor)
    return TensorSpec(name=name, leaves=leaves, recipe=recipe)


def rebuild(spec: TensorSpec, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensor that `spec` describes, over `leaves` given in the order of `spec.leaves`."""
    remaining = iter(leaves)
    if spec.recipe is None:
        return next(remaining)
    if isinstance(spec.recipe, Likeness):
        made: Any = torch.Tensor._make_subclass
        alike: torch.Tensor = made(spec.recipe.wrapper, next(remaining), False)
        return alike
    return _assemble(spec.recipe, remaining)


def _assemble(recipe: Recipe, remaining: Iterator[torch.Tensor]) -> torch.Tensor:
    parts: dict[str, torch.Tensor] = {}
    for name, part in recipe.parts:
        parts[name] = next(remaining) if part is None else _assemble(part, remaining)
    wrapper: Any = recipe.wrapper
    tensor: torch.Tensor = wrapper.__tensor_unflatten__(
        parts, recipe.context, recipe.shape, recipe.stride
    )
    return tensor


def _recipe_of(tensor: torch.Tensor) -> Recipe | None:
    if not is_traceable_wrapper_subclass(tensor):
        return None
    names, context = tensor.__tensor_flatten__()
    return Recipe(
        wrapper=type(tensor),
        context=context,
        shape=tuple(tensor.shape),
        stride=tuple(tensor.stride()),
        parts=tuple((name, _recipe_of(getattr(tensor, name))) for name in names),
    )


def _leaf_of(name: str, path: tuple[str, ...], leaf: torch.Tensor) -> Leaf:
    _refuse_opaque(".".join((name, *path)), leaf)
    dtype = dtype_name(leaf.dtype)
    if dtype not in ITEM_BYTES or leaf.layout is not torch.strided:
        raise ModelError(
            f"{name} is a {leaf.layout} tensor of {dtype}, which cannot be laid out in bytes: "
            "make it a dense tensor before swapping blocks"
        )
    shape = tuple(leaf.size())  # `shape` may be told otherwise by a subclass
    # The strides that a clone would have: dense tensors keep theirs, so that the same kernels run.
    # Asked of a plain tensor like it: on meta torch asks a subclass for its `shape`.
    alike = torch.empty_strided(shape, leaf.stride(), dtype=leaf.dtype, device="meta")
    stride = tuple(torch.empty_like(alike).stride())
    return Leaf(
        path=path,
        dtype=dtype,
        shape=shape,
        stride=contiguous_stride(shape) if leaf.numel() == 0 else stride,
    )


def _refuse_opaque(name: str, tensor: torch.Tensor) -> None:
    cls = type(tensor)
    if cls in _PLAIN_TYPES or is_traceable_wrapper_subclass(tensor):
        return
    # A class method is a new object at each access: compare the functions behind them.
    here, there = (getattr(c.__torch_function__, "__func__", None) for c in (cls, torch.Tensor))
    unchanged = here is there
    if unchanged and not vars(tensor):
        return  # a subclass in name only: its bytes mean what a plain tensor's bytes mean
    if _is_noted(tensor):
        return
    raise ModelError(
        f"{name} is a {named_class(tensor)}, a tensor subclass that does not say what it "
        "consists of (no __tensor_flatten__): replace it by a plain tensor before swapping blocks"
    )


def named_class(tensor: torch.Tensor) -> str:
    """The tensor's class, with the package that it is of where that is not torch."""
    package = type(tensor).__module__.partition(".")[0]
    of = "" if package in ("torch", "__main__", "builtins") else f" of {package}"
    return f"{type(tensor).__qualname__}{of}"


def _is_noted(tensor: torch.Tensor) -> bool:
    """Whether it is a parameter subclass with nothing but plain notes, such as diffusers'
    `GGUFParameter`: one array, whose meaning is its class and the notes."""
    noted = isinstance(tensor, torch.nn.Parameter) and type(tensor) not in _PLAIN_TYPES
    if not noted or is_traceable_wrapper_subclass(tensor) or not vars(tensor):
        return False
    return all(map(_is_plain, vars(tensor).values()))


def _is_plain(note: object) -> bool:
    if isinstance(note, tuple | list):
        return all(map(_is_plain, note))
    return note is None or isinstance(note, int | float | str | torch.dtype)


def view_leaf(slab: torch.Tensor, offset: int, leaf: Leaf) -> torch.Tensor:
    """A view of `slab` (uint8 `[bytes]`) at byte `offset` with the leaf's dtype, shape, stride."""
    flat = slab.narrow(0, offset, leaf.nbytes).view(torch_dtype(leaf.dtype))
    return flat.as_strided(leaf.shape, leaf.stride)
