"""Models of diffusers and transformers built from a configuration alone, without data."""

from collections.abc import Mapping
from typing import Any

import torch

from ...ambient import as_at_start
from ...errors import ModelError
from ..diffusers_seam import kept_in_fp32
from .diffusers_models import _default_dtype, _empty_weights, model_class
from .transformers_seam import config_of, encoder_class


@as_at_start()
def empty_model(class_name: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A class of diffusers with parameters on meta, as `from_pretrained` types them.

    Buffers are real. Raises ModelError for a class that is not there, or figures that it refuses.
    """
    found = model_class(class_name)
    try:
        with _empty_weights(), _default_dtype(dtype):
            model = found.from_config(dict(config))
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{class_name} cannot be built from this configuration "
            f"({(str(error).splitlines() or [type(error).__name__])[0]}): give the config.json of "
            "this model"
        ) from error
    kept = kept_in_fp32(model)
    for name, parameter in model.named_parameters():
        keep = any(part in name.split(".") for part in kept)
        parameter.data = parameter.data.to(torch.float32 if keep else dtype)
    return model.eval().requires_grad_(False)


@as_at_start()
def empty_encoder(class_name: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A class of transformers with parameters on meta, all in `dtype`. Raises ModelError."""
    values = config_of(config)
    found = encoder_class(class_name, values)
    with _empty_weights():
        model = found._from_config(values, dtype=dtype)
    model.tie_weights()  # parameters that are put on meta one by one are tied no more
    return model.eval().requires_grad_(False)
