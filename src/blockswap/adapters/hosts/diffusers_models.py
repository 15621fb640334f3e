"""Classes of diffusers without data: from a folder's config, or through its single-file converter.

A folder is matched by names, as `from_pretrained` matches it; a single file goes through the
library's own `from_single_file`, which is given `FileRows` and so says where every weight lies.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...ambient import as_at_start
from ...errors import GeometryError, ModelError
from ...layout.prefix import is_meaningless
from ...store.places import Place
from ..diffusers_seam import kept_in_fp32
from ..live import places_of
from .file_rows import FileRows
from .stored_rows import refuse_missing, refuse_unused

# What a converter runs into on a file of another model.
_LOST = (RuntimeError, TypeError, KeyError, ValueError, AttributeError, IndexError, OSError)


def model_class(class_name: str) -> Any:
    """The library's class of that name. Raises ModelError."""
    library = _library()
    found = getattr(library, class_name, None)
    if not isinstance(found, type) or not issubclass(found, library.ModelMixin):
        raise ModelError(
            f"{class_name!r} is no model of diffusers {library.__version__}, and code that comes "
            "with a model is never run here: use a newer diffusers, or load the model yourself "
            "and use swap_blocks"
        )
    return found


@as_at_start()
def build_from_rows(
    found: Any, config: Mapping[str, Any], rows: Mapping[str, torch.Tensor], dtype: torch.dtype,
    label: str,
) -> torch.nn.Module:  # fmt: skip
    """The class with `FileRows` for weights and real buffers, in eval mode; as `from_pretrained`.

    Raises GeometryError where file and class do not have the same tensors.
    """
    _refuse_quantised(config)
    with _empty_weights(), _default_dtype(dtype):
        model = found.from_config(dict(config))
    given = dict(rows)
    rename = getattr(model, "_fix_state_dict_keys_on_load", None)
    if rename is not None:
        rename(given)
    places = {place.label: place for place in places_of(model)}
    wanted = set(model.state_dict())
    refuse_missing(label, found.__name__, wanted - set(given))
    ignored = getattr(found, "_keys_to_ignore_on_load_unexpected", None) or ()
    extra = (name for name in set(given) - wanted if not is_meaningless(name))
    refuse_unused(
        label, found.__name__, (n for n in extra if not any(re.search(i, n) for i in ignored))
    )
    kept = kept_in_fp32(model)
    for name in wanted:
        place, tensor = places[name], given[name]
        _check_shape(label, found.__name__, place, tensor)
        if tensor.is_floating_point():
            keep = any(part in name.split(".") for part in kept)
            tensor = tensor.to(torch.float32 if keep else dtype)
        place.table[place.name] = (
            torch.nn.Parameter(tensor, requires_grad=False) if place.is_parameter else tensor
        )
    built: torch.nn.Module = model.eval()
    return built


@as_at_start()
def build_from_single_file(
    found: Any, folder: Path, rows: Mapping[str, torch.Tensor], dtype: torch.dtype, label: str
) -> torch.nn.Module:
    """The class filled from a file in its vendor's names, by the library's own converter.

    `folder` holds the class's config.json. Raises GeometryError where the converter does not know
    the file, or leaves tensors of it out.
    """
    if not hasattr(found, "from_single_file"):
        raise ModelError(
            f"diffusers has no converter for single files of {found.__name__}: open the folder "
            "that save_pretrained writes"
        )
    _empty_weights()
    try:
        model = found.from_single_file(
            dict(rows), config=str(folder), torch_dtype=dtype, local_files_only=True
        )
    except NotImplementedError as error:  # what it moves last is still on meta
        raise GeometryError(
            f"{label} lacks tensors that {found.__name__} has: give the whole file of this model"
        ) from error
    except _LOST as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise GeometryError(
            f"{label} is no file that diffusers' converter for {found.__name__} understands "
            f"({reason}): give a file of this model, or the folder that save_pretrained writes"
        ) from error
    used = {run.tensor.name for rows in _rows_in(model) for run in rows.blockswap_origin.runs}
    computed = any(rows.blockswap_origin.computed_by for rows in _rows_in(model))
    if not computed:  # else the weight that is computed is refused by name
        extra = (name for name in rows if name not in used and not is_meaningless(name))
        refuse_unused(label, found.__name__, extra)
    built: torch.nn.Module = model.eval()
    return built


def wan_converter() -> Any:
    """The library's renaming of a state dict in Wan-Video's names. Raises ModelError."""
    _library()
    try:
        from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
    except ImportError as error:
        raise ModelError(
            f"this diffusers has no converter for Wan's files ({error}): use diffusers 0.36 to 0.42"
        ) from error
    return convert_wan_transformer_to_diffusers


def _rows_in(model: torch.nn.Module) -> Iterator[FileRows]:
    for place in places_of(model):
        tensor = place.table[place.name]
        if isinstance(tensor, FileRows):
            yield tensor


def _check_shape(label: str, class_name: str, place: Place, tensor: torch.Tensor) -> None:
    wanted = tuple(place.table[place.name].shape)
    if tuple(tensor.shape) != wanted:
        raise GeometryError(
            f"{label}: {place.label} is {list(tensor.shape)}, {class_name} has {list(wanted)} "
            "there: its config.json is of another model"
        )


def _refuse_quantised(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "a quantiser")
        raise ModelError(
            f"the folder's weights are quantised by {method}, which the streamed model does not "
            "decode: open a bf16, fp16 or fp32 checkpoint of the same model"
        )


def _empty_weights() -> Any:
    """Parameters made on meta, buffers for real, as the library's own loader makes them."""
    try:
        from accelerate import init_empty_weights
    except ImportError as error:
        raise ModelError(
            f"opening a folder needs accelerate, which could not be imported ({error}): "
            'pip install "wanvideo-blockswap[diffusers]"'
        ) from error
    return init_empty_weights()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The library builds its models under the dtype asked for; buffers show it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _library() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ModelError(
            f"opening a model folder needs diffusers, which could not be imported ({error}): "
            'pip install "wanvideo-blockswap[diffusers]"'
        ) from error
    return diffusers
