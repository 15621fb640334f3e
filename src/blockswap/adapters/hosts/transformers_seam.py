"""The seam to transformers: its class for a config, built by its own loader without data.

`from_pretrained` is given a state dict of `FileRows`, so renames, dtypes, ties and what is kept in
fp32 are decided by the library itself.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ...ambient import as_at_start
from ...errors import GeometryError, ModelError
from .stored_rows import refuse_missing, refuse_unused

# What repackagers put beside an encoder and no class has a place for: the tokenizer as bytes.
_TOKENIZERS = ("spiece_model", "tekken_model", "tokenizer_json")


def config_of(values: Mapping[str, Any]) -> Any:
    """The library's config object for the contents of a config.json. Raises ModelError."""
    hf = _library()
    kind = values.get("model_type")
    if kind not in hf.CONFIG_MAPPING:
        raise ModelError(
            f"model_type={kind!r} is none that transformers {hf.__version__} has, and code that "
            "comes with a model is never run here: use a newer transformers, or load the model "
            "yourself and use swap_blocks"
        )
    if values.get("quantization_config"):
        method = values["quantization_config"].get("quant_method", "a quantiser")
        raise ModelError(
            f"the folder's weights are quantised by {method}, which the streamed model does not "
            "decode: open a bf16, fp16 or fp32 checkpoint of the same model"
        )
    return hf.CONFIG_MAPPING[kind].from_dict(dict(values))


def encoder_class(class_name: str, config: Any) -> Any:
    """The class of that name; of an encoder and decoder, its encoder's. Raises ModelError."""
    hf = _library()
    found = getattr(hf, class_name, None)
    if not isinstance(found, type) or not issubclass(found, hf.PreTrainedModel):
        raise ModelError(
            f"{class_name!r} is no model of transformers {hf.__version__}, and code that comes "
            "with a model is never run here: use a newer transformers, or load the model yourself "
            "and use swap_blocks"
        )
    if getattr(config, "is_encoder_decoder", False):
        return hf.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), found)
    return found


@as_at_start()
def build_from_rows(
    found: Any, config: Any, rows: Mapping[str, torch.Tensor], dtype: torch.dtype, label: str
) -> torch.nn.Module:
    """The model with `FileRows` for weights and real buffers, in eval mode.

    Raises GeometryError where file and class do not have the same tensors.
    """
    given = {name: tensor for name, tensor in rows.items() if name not in _TOKENIZERS}
    # Once on meta, where a tensor that the file lacks costs nothing; then with real buffers.
    for device in ("meta", None):
        with _quiet():
            model, info = found.from_pretrained(
                None,
                config=config,
                state_dict=dict(given),
                dtype=dtype,
                device_map=device,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told in one sentence below
            )
        refuse_missing(label, found.__name__, info["missing_keys"])
        refuse_unused(label, found.__name__, info["unexpected_keys"])
        for name, stored, wanted in info["mismatched_keys"]:
            raise GeometryError(
                f"{label}: {name} is {list(stored)}, {found.__name__} has {list(wanted)} there: "
                "its config.json is of another model"
            )
        for error in info["error_msgs"]:
            raise ModelError(f"{label} cannot be loaded as {found.__name__}: {error}")
    built: torch.nn.Module = model.eval()
    return built


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bar and table of keys: what they say is raised instead."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            f"opening a text encoder needs transformers, which could not be imported ({error}): "
            'pip install "wanvideo-blockswap[encoders]"'
        ) from error
    return transformers
