"""How a part is read into host memory, or built without data, from where it lies."""

from collections.abc import Mapping
from typing import Any

import torch

from ...adapters.hosts.vae_files import in_diffusers_names
from ...ambient import as_at_start
from ...errors import CheckpointError, ModelError
from .components import TOKENIZER_IN_FILE, Part
from .spiece import tokenizer_of

_ALIGNMENT = 64


def hosts() -> Any:
    """The diffusers module. Raises ModelError where it or transformers is not installed."""
    try:
        import diffusers
        import transformers  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"a whole video needs diffusers and transformers, and one could not be imported "
            f'({error}): pip install "wanvideo-blockswap[generate]"'
        ) from error
    return diffusers


def class_named(name: str) -> Any:
    """A class of diffusers, of transformers or of the shipped model. Raises ModelError."""
    diffusers = hosts()
    import transformers

    from ...demo import pipeline

    for home in (diffusers, transformers, pipeline):
        if hasattr(home, name):
            return getattr(home, name)
    raise ModelError(
        f"{name} is named by the model, and neither the installed diffusers nor transformers has "
        "it: install the versions that the model was saved with"
    )


def load_part(part: Part) -> Any:
    """A component in host memory, in the dtypes of its files; nothing is fetched.

    A VAE in a single file computes in fp32, as Wan's pipelines have it. Raises CheckpointError
    where a single file is not that of the class.
    """
    if part.class_name == TOKENIZER_IN_FILE:
        return tokenizer_of(part.path)
    kind = class_named(part.class_name)
    if part.source == "config":
        return kind.from_config(dict(part.config)) if _has_config(kind) else kind(**part.config)
    if part.source == "file":
        loaded = _from_file(part)
    else:
        loaded = kind.from_pretrained(part.path, local_files_only=True)
    return _in_own_memory(loaded).eval() if isinstance(loaded, torch.nn.Module) else loaded


@as_at_start()
def build_empty(part: Part) -> torch.nn.Module:
    """A component on the meta device, of its config alone: nothing is read."""
    kind = class_named(part.class_name)
    with torch.device("meta"):
        if _has_config(kind):
            model = kind.from_config(dict(part.config))
        else:
            model = kind(kind.config_class.from_dict(dict(part.config)))
    built: torch.nn.Module = model.eval()
    return built


def _has_config(kind: Any) -> bool:
    """Whether the class makes itself of a config, as diffusers' do."""
    return hasattr(kind, "from_config")


def _from_file(part: Part) -> torch.nn.Module:
    from safetensors.torch import load_file

    tensors = {name: tensor for file in part.files for name, tensor in load_file(file).items()}
    if part.class_name.startswith("Autoencoder"):
        return _vae_of(part, in_diffusers_names(tensors))
    kind = class_named(part.class_name)
    config = kind.config_class.from_dict(dict(part.config))
    model, told = kind.from_pretrained(
        None, config=config, state_dict=tensors, dtype="auto", output_loading_info=True
    )
    if told["missing_keys"]:
        raise _torn(part, f"it lacks {min(told['missing_keys'])}")
    loaded: torch.nn.Module = model
    return loaded


def _vae_of(part: Part, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    model = build_empty(part)
    wanted = model.state_dict()
    for name in wanted.keys() ^ tensors.keys():
        raise _torn(part, f"it {'lacks' if name in wanted else 'has no place for'} {name}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise _torn(part, f"{name} is {list(tensor.shape)}, not {list(wanted[name].shape)}")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return model


def _torn(part: Part, what: str) -> CheckpointError:
    return CheckpointError(
        f"{part.path} is no whole {part.class_name} ({what}): download the file again"
    )


def _in_own_memory(model: torch.nn.Module) -> torch.nn.Module:
    for tensor in [*model.parameters(), *model.buffers()]:
        # A view of the mapped file lies at any offset, and kernels of the CPU round by alignment:
        # weights get memory of their own, as streamed ones have.
        if tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()
    return model
