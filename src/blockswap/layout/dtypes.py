"""Names and sizes of element types, spelled as torch spells them, without importing torch."""

from collections.abc import Mapping
from types import MappingProxyType

# safetensors code -> torch's name. F4/F6 types pack several elements into a byte and are left out:
# no Wan checkpoint uses them, and a wrong guess about their size would be a wrong byte.
SAFETENSORS_CODES: Mapping[str, str] = MappingProxyType(
    {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "I16": "int16",
        "U16": "uint16",
        "F16": "float16",
        "BF16": "bfloat16",
        "I32": "int32",
        "U32": "uint32",
        "F32": "float32",
        "F64": "float64",
        "I64": "int64",
        "U64": "uint64",
        "C64": "complex64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
    }
)

HALVES = ("bfloat16", "float16")
PLAIN_FLOATS = ("float32", *HALVES)  # what computes, and adds up with fp32, as it is
FP8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")

# torch's name -> safetensors code
CODES: Mapping[str, str] = MappingProxyType(
    {name: code for code, name in SAFETENSORS_CODES.items()}
)

ITEM_BYTES: Mapping[str, int] = MappingProxyType(
    {
        "bool": 1,
        "uint8": 1,
        "int8": 1,
        "int16": 2,
        "uint16": 2,
        "float16": 2,
        "bfloat16": 2,
        "int32": 4,
        "uint32": 4,
        "float32": 4,
        "float64": 8,
        "int64": 8,
        "uint64": 8,
        "complex64": 8,
        "complex128": 16,
        "float8_e4m3fn": 1,
        "float8_e5m2": 1,
        "float8_e8m0fnu": 1,
        "float8_e4m3fnuz": 1,
        "float8_e5m2fnuz": 1,
    }
)
