"""A live model's modules as the plain description that the rule of blocks reads; what it names."""

import torch
from torch.nn.parameter import is_lazy

from .block_rule import Container, ModuleNode

# Class attributes in which diffusers' and transformers' models name their blocks.
_NAMING = ("_repeated_blocks", "_no_split_modules")


def describe_tree(model: torch.nn.Module) -> ModuleNode:
    """The modules of a model; one that hangs in two places is described where it comes first."""
    return _node(model, "", set(), set())


def repeated_classes(model: torch.nn.Module) -> frozenset[str]:
    """The class names that the model, or a model inside it, calls repeated or not to be split."""
    names: set[str] = set()
    for module in model.modules():
        for attribute in _NAMING:
            named = getattr(module, attribute, None)
            if isinstance(named, (list, tuple, set, frozenset)):
                names.update(name for name in named if isinstance(name, str))
    return frozenset(names)


def runs(module: torch.nn.Module) -> bool:
    """Whether the module has a forward of its own, so that it may be called itself."""
    return type(module).forward is not torch.nn.Module.forward or "forward" in vars(module)


def _node(
    module: torch.nn.Module, path: str, seen: set[torch.nn.Module], counted: set[int]
) -> ModuleNode:
    seen.add(module)
    nbytes = sum(_nbytes(parameter, counted) for parameter in module.parameters(recurse=False))
    children = []
    for name, child in module.named_children():
        if child not in seen:
            children.append(_node(child, f"{path}.{name}" if path else name, seen, counted))
    kind = type(module)
    return ModuleNode(
        path=path,
        class_name=f"{kind.__module__}.{kind.__qualname__}",
        nbytes=nbytes + sum(child.nbytes for child in children),
        children=tuple(children),
        container=_container(module),
        callable=runs(module),
        layer=_is_layer(module),
        table=isinstance(module, torch.nn.Embedding),
    )


def _is_layer(module: torch.nn.Module) -> bool:
    """Whether it is one operation of torch, or of a class made from one (hosts have their own).

    So is a class of a host's own that has a weight, and nothing but a bias and scales beside it.
    PEFT hangs its parts beside the layer that it wraps, torch its parametrizations below it: what
    was a layer before stays one.
    """
    wrapped = getattr(module, "base_layer", None)
    if isinstance(wrapped, torch.nn.Module):
        return _is_layer(wrapped)
    below = [name for name, _ in module.named_children() if name != "parametrizations"]
    classes = [kind for kind in type(module).__mro__ if kind is not torch.nn.Module]
    of_torch = any(kind.__module__.startswith("torch.") for kind in classes)
    return not below and (of_torch or _has_one_weight(module))


def _has_one_weight(module: torch.nn.Module) -> bool:
    names = {name for name, _ in module.named_parameters(recurse=False)}
    beside = {name for name in names if name == "bias" or "scale" in name}
    return names - beside == {"weight"}


def _container(module: torch.nn.Module) -> Container:
    if isinstance(module, torch.nn.Sequential):
        return "sequence"
    if runs(module):
        return ""
    if isinstance(module, torch.nn.ModuleDict):
        return "names"
    return "list" if isinstance(module, torch.nn.ModuleList) else ""


def _nbytes(parameter: torch.nn.Parameter, counted: set[int]) -> int:
    """Bytes of a parameter that was not counted yet; what has no shape yet counts as nothing."""
    if id(parameter) in counted or is_lazy(parameter):
        return 0
    counted.add(id(parameter))
    return parameter.numel() * parameter.element_size()
