"""Quantised files: this module owns naming the quantiser whose tensors a checkpoint holds."""

from collections.abc import Iterable

from ...errors import GeometryError
from ..quoting import quote

# How a key ends that stands for, or beside, a layer's packed weight: whose spelling it is. Scales
# of fp8_scaled files are not among them: those open where a skeleton knows scales.
_ENDINGS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((".weight._data", ".weight._scale", ".weight._shift"), "by quanto"),
    ((".wscales", ".wzeros", ".smooth_factor", ".lora_down_svd"), "by SVDQuant or Nunchaku"),
    ((".qzeros", ".g_idx"), "by GPTQ or AWQ"),
    ((".qweight",), "into packed integers (SVDQuant, GPTQ or AWQ)"),
    ((".int8_weight", ".int4_weight"), "into integers"),
    ((".weight.absmax", ".weight.quant_map", ".weight.nested_absmax"), "by bitsandbytes"),
    ((".weight.SCB", ".SCB", ".weight_format"), "by bitsandbytes, into int8"),
    ((".weight_scale_inv",), "into fp8 with scales"),
    ((".weight_packed", ".weight_zero_point", ".zero_point"), "by compressed-tensors"),
    ((".weight.qdata", ".weight.tensor_data"), "by torchao"),
)
_PARTS = ((".weight.quant_state.", "by bitsandbytes"),)


def refuse_quantised(label: str, keys: Iterable[str]) -> None:
    """Raises GeometryError where a key is of a known quantiser."""
    for key in keys:
        how = next((how for ends, how in _ENDINGS if key.endswith(ends)), None)
        how = how or next((how for part, how in _PARTS if part in key), None)
        if how is not None:
            raise GeometryError(
                f"{label} is quantised {how} (it holds {quote(key)}): the file may be whole, but "
                "blockswap has no decoder for it: open a bf16, fp16, fp32, fp8, int8 or GGUF file"
            )
