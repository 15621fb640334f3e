"""GGML's block types: numbers in a block, and bytes that hold them, for each type of a GGUF file.

Sizes and ids are those of the `gguf` package (`GGML_QUANT_SIZES`); a test compares them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class BlockType:
    """`block` numbers are held by `nbytes` bytes."""

    name: str
    block: int
    nbytes: int


# Types that are plain numbers: id in the file -> element type as torch spells it.
PLAIN: Mapping[int, str] = MappingProxyType(
    {0: "float32", 1: "float16", 30: "bfloat16", 24: "int8", 25: "int16", 26: "int32",
     27: "int64", 28: "float64"}
)  # fmt: skip
# Types that are decoded.
BLOCKS: Mapping[int, BlockType] = MappingProxyType(
    {
        2: BlockType("Q4_0", 32, 18),
        3: BlockType("Q4_1", 32, 20),
        6: BlockType("Q5_0", 32, 22),
        7: BlockType("Q5_1", 32, 24),
        8: BlockType("Q8_0", 32, 34),
        10: BlockType("Q2_K", 256, 84),
        11: BlockType("Q3_K", 256, 110),
        12: BlockType("Q4_K", 256, 144),
        13: BlockType("Q5_K", 256, 176),
        14: BlockType("Q6_K", 256, 210),
        20: BlockType("IQ4_NL", 32, 18),
        23: BlockType("IQ4_XS", 256, 136),
    }
)
# Types that have a name and are not decoded.
OTHERS: Mapping[int, str] = MappingProxyType(
    {9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
     22: "IQ2_S", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}
)  # fmt: skip
