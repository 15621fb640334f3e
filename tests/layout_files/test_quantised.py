"""A whole file of a quantiser is told that it is quantised, not that something is missing."""

from pathlib import Path

import pytest
from checkpoint_samples import TINY, save_shapes

from blockswap.errors import GeometryError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import infer_geometry, tensor_names

KINDS = {
    "quanto": ("weight._data", "weight._scale"),
    "SVDQuant": ("qweight", "wscales"),
    "AWQ": ("qweight", "qzeros", "scales"),
    "into integers": ("int8_weight", "scale"),
    "fp8 with scales": ("weight", "weight_scale_inv"),
    "bitsandbytes": ("weight", "weight.absmax", "weight.quant_map"),
    "int8": ("weight", "SCB"),
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_shape"),
}


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_file_is_named(kind: str, prefix: str, tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in tensor_names(TINY).items():
        if name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2:
            layer = prefix + name.removesuffix("weight")
            shapes |= {layer + part: shape if part == "weight" else (1,) for part in KINDS[kind]}
        else:
            shapes[prefix + name] = shape
    path = save_shapes(tmp_path / "f.safetensors", shapes)
    with pytest.raises(GeometryError, match=r"is quantised.*open a bf16, fp16") as refused:
        infer_geometry(open_checkpoint(path))
    assert "whole checkpoint" not in str(refused.value)
