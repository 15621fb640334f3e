"""The bits of each GGML block type, as operations over views of a piece of blocks.

Each function follows `dequantize_blocks` of the class of the same name in `gguf/quants.py`. A
program is built once and run at each visit: what it writes to is scratch, laid out by its caller.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Program = list[Callable[[], object]]  # what an operation returns is of no interest


@dataclass(frozen=True, slots=True)
class Bench:
    """A piece of n blocks, and the scratch it is dequantised in.

    `numbers` fp32 [n, block] takes the result; `low` and `high` uint8 [n, block] its bits;
    `whole` fp32 [n, 2] a block's scale and minimum, `group` fp32 [n, 32] those of its groups (16
    and 16), `group_bits` uint8 [n, 32] the same before they are widened, `small` uint8 [n, 8];
    `index` int32 [n * block] and `table` fp32 [16] serve types that look numbers up.
    """

    blocks: torch.Tensor
    numbers: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    whole: torch.Tensor
    group: torch.Tensor
    group_bits: torch.Tensor
    small: torch.Tensor
    index: torch.Tensor
    table: torch.Tensor

    def bytes(self, first: int, count: int) -> torch.Tensor:
        """`count` bytes of each block from byte `first` on."""
        return self.blocks[:, first : first + count]

    def half(self, first: int, column: int) -> tuple[Program, torch.Tensor]:
        """The fp16 number at byte `first`, widened into `whole[:, column]`."""
        source, target = (
            self.bytes(first, 2).view(torch.float16),
            self.whole[:, column : column + 1],
        )
        return [lambda: target.copy_(source)], target


def _grouped_bytes(b: Bench, first: int, groups: int, width: int) -> torch.Tensor:
    """`groups` runs of `width` bytes of each block, from byte `first` on: [n, groups, width]."""
    return b.bytes(first, groups * width).view(-1, groups, width)


def _spread(source: torch.Tensor, target: torch.Tensor, bits: int) -> Program:
    """Fields of `bits` bits of each byte: `source` [n, g, w] -> `target` [n, g, 8 // bits, w].

    The lowest field comes first.
    """
    program: Program = []
    for field in range(8 // bits):
        part = target[:, :, field]
        program.append(_shifted(source, bits * field, part))
    program.append(lambda: target.bitwise_and_((1 << bits) - 1))
    return program


def _shifted(source: torch.Tensor, by: int, out: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.bitwise_right_shift(source, by, out=out)


def _joined(low: torch.Tensor, high: torch.Tensor, by: int) -> Program:
    """`low` with the bits of `high` above them, which is spoilt."""
    return [lambda: high.bitwise_left_shift_(by), lambda: low.bitwise_or_(high)]


def _nibbles(b: Bench, first: int, groups: int) -> Program:
    """Four bits of each number, in `groups` runs of low halves followed by high ones."""
    n, block = b.low.shape
    width = block // (2 * groups)
    source = _grouped_bytes(b, first, groups, width)
    return _spread(source, b.low.view(n, groups, 2, width), 4)


def _scaled(b: Bench, levels: torch.Tensor, less: int, factor: torch.Tensor) -> Program:
    """numbers = (levels - less) * factor"""
    program: Program = [lambda: b.numbers.copy_(levels)]
    if less:
        program.append(lambda: b.numbers.sub_(less))
    return [*program, lambda: b.numbers.mul_(factor)]


def _q8_0(b: Bench) -> Program:
    widen, scale = b.half(0, 0)
    return [*widen, *_scaled(b, b.bytes(2, 32).view(torch.int8), 0, scale)]


def _q4_0(b: Bench) -> Program:
    widen, scale = b.half(0, 0)
    return [*widen, *_nibbles(b, 2, 1), *_scaled(b, b.low, 8, scale)]


def _q4_1(b: Bench) -> Program:
    (widen, scale), (widen_least, least) = b.half(0, 0), b.half(2, 1)
    scaled = _scaled(b, b.low, 0, scale)
    return [*widen, *widen_least, *_nibbles(b, 4, 1), *scaled, lambda: b.numbers.add_(least)]


def _fifth_bits(b: Bench, first: int, nibbles: int) -> Program:
    """Four bits at byte `nibbles` and one more of 32 at byte `first`."""
    n = b.low.shape[0]
    # Bit i of the four bytes is that of number i: byte i // 8, bit i % 8.
    spread = _spread(b.bytes(first, 4).unsqueeze(2), b.high.view(n, 4, 8, 1), 1)
    return [*_nibbles(b, nibbles, 1), *spread, *_joined(b.low, b.high, 4)]


def _q5_0(b: Bench) -> Program:
    widen, scale = b.half(0, 0)
    return [*widen, *_fifth_bits(b, 2, 6), *_scaled(b, b.low, 16, scale)]


def _q5_1(b: Bench) -> Program:
    (widen, scale), (widen_least, least) = b.half(0, 0), b.half(2, 1)
    scaled = _scaled(b, b.low, 0, scale)
    return [*widen, *widen_least, *_fifth_bits(b, 4, 8), *scaled, lambda: b.numbers.add_(least)]


def _grouped(b: Bench, groups: int, scale: torch.Tensor, least: torch.Tensor) -> Program:
    """numbers = numbers * group's scale - group's least, of `groups` groups.

    What the groups have are whole numbers in `group_bits`, times the block's `scale` and `least`.
    """
    n, block = b.numbers.shape
    both, bits = b.group, b.group_bits
    scales, leasts = both[:, :groups], both[:, 16 : 16 + groups]
    numbers = b.numbers.view(n, groups, block // groups)
    return [
        lambda: both.copy_(bits),
        lambda: scales.mul_(scale),
        lambda: leasts.mul_(least),
        lambda: numbers.mul_(scales.unsqueeze(2)),
        lambda: numbers.sub_(leasts.unsqueeze(2)),
    ]


def _six_bits(b: Bench, first: int) -> Program:
    """Scales and minima of eight groups, six bits each, in twelve bytes."""
    d, m, both = (b.bytes(first + at, 4) for at in (0, 4, 8))
    scales, leasts, small = b.group_bits[:, :8], b.group_bits[:, 16:24], b.small[:, :4]

    def upper(source: torch.Tensor, nibble: torch.Tensor) -> Program:
        return [
            lambda: torch.bitwise_right_shift(source, 2, out=small),
            lambda: small.bitwise_and_(0x30),
            lambda: nibble.bitwise_or_(small),
        ]

    return [
        b.group_bits.zero_,
        lambda: torch.bitwise_and(d, 0x3F, out=scales[:, :4]),
        lambda: torch.bitwise_and(both, 0x0F, out=scales[:, 4:]),
        *upper(d, scales[:, 4:]),
        lambda: torch.bitwise_and(m, 0x3F, out=leasts[:, :4]),
        lambda: torch.bitwise_right_shift(both, 4, out=leasts[:, 4:]),
        *upper(m, leasts[:, 4:]),
    ]


def _q4_k(b: Bench) -> Program:
    (widen, scale), (widen_least, least) = b.half(0, 0), b.half(2, 1)
    levels: Program = [*_nibbles(b, 16, 4), lambda: b.numbers.copy_(b.low)]
    return [*widen, *widen_least, *_six_bits(b, 4), *levels, *_grouped(b, 8, scale, least)]


def _q5_k(b: Bench) -> Program:
    n = b.low.shape[0]
    (widen, scale), (widen_least, least) = b.half(0, 0), b.half(2, 1)
    spread = _spread(b.bytes(16, 32).unsqueeze(1), b.high.view(n, 1, 8, 32), 1)
    levels: Program = [*_nibbles(b, 48, 4), *spread, *_joined(b.low, b.high, 4)]
    levels.append(lambda: b.numbers.copy_(b.low))
    return [*widen, *widen_least, *_six_bits(b, 4), *levels, *_grouped(b, 8, scale, least)]


def _signed_groups(b: Bench, scale: torch.Tensor, levels: torch.Tensor) -> Program:
    """numbers = numbers * (scale * group's level), of 16 or 8 groups; levels are fp32 by then."""
    n, block = b.numbers.shape
    groups = levels.shape[1]
    numbers = b.numbers.view(n, groups, block // groups)
    return [lambda: levels.mul_(scale), lambda: numbers.mul_(levels.unsqueeze(2))]


def _q6_k(b: Bench) -> Program:
    n = b.low.shape[0]
    widen, scale = b.half(208, 0)
    upper = _grouped_bytes(b, 128, 2, 32)
    spread = _spread(upper, b.high.view(n, 2, 4, 32), 2)
    levels, source = b.group[:, :16], b.bytes(192, 16).view(torch.int8)
    return [
        *widen,
        *_nibbles(b, 0, 2),
        *spread,
        *_joined(b.low, b.high, 4),
        lambda: b.numbers.copy_(b.low),
        lambda: b.numbers.sub_(32),
        lambda: levels.copy_(source),
        *_signed_groups(b, scale, levels),
    ]


def _two_bits(b: Bench, first: int) -> Program:
    source = _grouped_bytes(b, first, 2, 32)
    return _spread(source, b.low.view(b.low.shape[0], 2, 4, 32), 2)


def _q2_k(b: Bench) -> Program:
    (widen, scale), (widen_least, least) = b.half(80, 0), b.half(82, 1)
    source, scales, leasts = b.bytes(0, 16), b.group_bits[:, :16], b.group_bits[:, 16:]
    return [
        *widen,
        *widen_least,
        lambda: torch.bitwise_and(source, 0x0F, out=scales),
        lambda: torch.bitwise_right_shift(source, 4, out=leasts),
        *_two_bits(b, 16),
        lambda: b.numbers.copy_(b.low),
        *_grouped(b, 16, scale, least),
    ]


def _q3_k(b: Bench) -> Program:
    n = b.low.shape[0]
    widen, scale = b.half(108, 0)
    masks = _spread(b.bytes(0, 32).unsqueeze(1), b.high.view(n, 1, 8, 32), 1)
    lower, upper = b.group_bits[:, :16], b.group_bits[:, 16:]
    nibbles = _spread(b.bytes(96, 8).unsqueeze(1), lower.view(n, 1, 2, 8), 4)
    pairs = _spread(b.bytes(104, 4).unsqueeze(1), upper.view(n, 1, 4, 4), 2)
    levels = b.group[:, :16]
    return [
        *widen,
        *nibbles,
        *pairs,
        *_joined(lower, upper, 4),
        lambda: levels.copy_(lower),
        lambda: levels.sub_(32),
        *_two_bits(b, 32),
        *masks,
        # A bit that is not set takes four away: 2 bits + 4 * bit - 4.
        *_joined(b.low, b.high, 2),
        lambda: b.numbers.copy_(b.low),
        lambda: b.numbers.sub_(4),
        *_signed_groups(b, scale, levels),
    ]


_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _looked_up(b: Bench) -> Program:
    """numbers = the value of each four bits in the table, which is written anew each time."""
    numbers, bits, index = b.numbers.flatten(), b.low.flatten(), b.index[: b.low.numel()]
    cells = [(b.table[at : at + 1], value) for at, value in enumerate(_IQ4)]

    def fill() -> None:
        for cell, value in cells:
            cell.fill_(value)

    return [
        fill,
        lambda: index.copy_(bits),
        lambda: torch.index_select(b.table, 0, index, out=numbers),
    ]


def _iq4_nl(b: Bench) -> Program:
    widen, scale = b.half(0, 0)
    return [*widen, *_nibbles(b, 2, 1), *_looked_up(b), lambda: b.numbers.mul_(scale)]


def _iq4_xs(b: Bench) -> Program:
    n = b.low.shape[0]
    widen, scale = b.half(0, 0)
    lower, upper, levels = b.group_bits[:, :8], b.group_bits[:, 16:24], b.group[:, :8]
    nibbles = _spread(b.bytes(4, 4).unsqueeze(2), lower.view(n, 4, 2, 1), 4)
    pairs = _spread(b.bytes(2, 2).unsqueeze(2), upper.view(n, 2, 4, 1), 2)
    return [
        *widen,
        *nibbles,
        *pairs,
        *_joined(lower, upper, 4),
        lambda: levels.copy_(lower),
        lambda: levels.sub_(32),
        *_nibbles(b, 8, 8),
        *_looked_up(b),
        *_signed_groups(b, scale, levels),
    ]


BUILDERS: Mapping[str, Callable[[Bench], Program]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
INDEXED = frozenset({"IQ4_NL", "IQ4_XS"})  # types that look their numbers up
