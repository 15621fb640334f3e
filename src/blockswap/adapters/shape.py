"""The Wan geometry of a loaded model: from parameter shapes, with heads from its config."""

from collections.abc import Mapping
from typing import Any

import torch

from ..layout.checkpoint import Checkpoint, StoredTensor
from ..layout.geometry import WanGeometry, infer_geometry
from .families import bare


def geometry_of(model: torch.nn.Module) -> WanGeometry:
    """The geometry of a diffusers Wan class or of a module laid out as `WanModel`.

    Heads and VACE positions come from its `config` or its attributes. Raises GeometryError for a
    module with other parameters: predict its forward itself (`predict_module`) and give the cost.
    """
    root = bare(model)
    tensors = {
        name: StoredTensor(name, name, 0, "float32", tuple(p.shape), 0, 0)
        for name, p in root.named_parameters()
    }
    return infer_geometry(
        Checkpoint(
            label=type(root).__name__,
            headers=(),
            prefix="",
            tensors=tensors,
            left_out=(),
            metadata={},
            config=_config(root),
        )
    )


def _config(root: torch.nn.Module) -> Mapping[str, Any] | None:
    config = getattr(root, "config", None)
    if isinstance(config, Mapping):
        # The module speaks for itself: a subclass of the caller's is what its parameters are.
        return {key: value for key, value in config.items() if key != "_class_name"}
    heads = getattr(root, "num_heads", None)
    return None if heads is None else {"num_heads": heads}
