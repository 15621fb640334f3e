"""Specs of GPUs by name, and the share of them assumed to be sustained, for a GPU not at hand.

Each row holds what the vendor publishes; rates that are expected in practice are derived from it
by the stated constants below. Every one of those is an assumption, and `blockswap probe` on the
machine itself replaces them all by measurements.
"""

import difflib
import re
from dataclasses import dataclass, replace

from ...errors import ArgsError
from ...units import GIB, format_rate
from .machine import DiskFigures, Machine

AS_OF = "2026-11"

# What a denoising step is assumed to reach of the dense tensor rate on paper. Large bf16 products
# come near 0.7-0.9 of it (the clock drops under full load), fused attention near 0.5-0.7, and the
# norms, rotations and gates between them take time but count as no FLOPs.
SUSTAINED_SHARE = 0.6

# torch's attention is FlashAttention-2's kernels on NVIDIA's cards. Where that is known to differ
# from the share above: it uses 35 % of an H100 (the FlashAttention-3 paper, 2024), and nearly all
# of a GeForce card, whose tensor cores run at half rate in bf16: 165 TFLOP/s of an RTX 4090's 165
# with heads of 128 (the SageAttention paper, 2024), a fifth of 1038 of an RTX 5090's 209
# (SageAttention 3, 2025). Of older GeForce cards no figure is known here.
HOPPER_ATTENTION = 0.35
GEFORCE_ATTENTION = 0.95

# Gigabytes per second and lane in one direction after line coding: 2.5 and 5 GT/s x
# 8/10; 8, 16 and 32 GT/s x 128/130.
LANE_RATES = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9}
# Packet headers and flow control leave about this much to large copies from pinned memory.
LINK_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Card:
    """What a vendor publishes of one card. Rates per second on paper, sizes in bytes.

    `tensor_flops` is the dense bf16 rate with accumulation in fp32 (torch accumulates so), which
    is half of the advertised one on GeForce cards; `flops` the fp32 rate without tensor cores.
    """

    name: str
    device_bytes: int
    memory_rate: float
    tensor_flops: float
    flops: float
    pcie: tuple[int, int]  # generation, lanes
    source: str
    bf16: bool = True  # Turing and Volta compute in fp16 alone
    attention_share: float = SUSTAINED_SHARE  # of `tensor_flops`, that torch's attention sustains

    @property
    def half(self) -> str:
        """What is computed in at the full rate of the tensor cores, in short."""
        return "bf16" if self.bf16 else "fp16"

    @property
    def pinned_link(self) -> float:
        """Expected bytes/s from pinned memory, in a slot of the card's own generation and width."""
        generation, lanes = self.pcie
        return LANE_RATES[generation] * lanes * LINK_SHARE


def machine_of_card(
    card: Card, *, host_bytes: int | None = None, disk: DiskFigures | None = None
) -> Machine:
    """The card as the time model takes it; host and disk are those of the machine it is put in.

    The rate of copies from pageable memory stays unknown: it is the host's, not the card's.
    """
    generation, lanes = card.pcie
    halves = ("bfloat16", "float16") if card.bf16 else ("float16",)
    half, attention = (
        tuple((dtype, card.tensor_flops * share) for dtype in halves)
        for share in (SUSTAINED_SHARE, card.attention_share)
    )
    return Machine(
        name=card.name,
        on_host=False,
        flops=(
            *half,
            ("float32", card.flops * SUSTAINED_SHARE),
        ),
        attention_flops=attention,
        device_bytes=card.device_bytes,
        host_bytes=host_bytes,
        memory_rate=card.memory_rate,
        pinned_link=card.pinned_link,
        disk=disk,
        source=(
            f"{card.source}, as of {AS_OF}: {card.tensor_flops / 1e12:.1f} TFLOP/s in {card.half} "
            f"on paper, {SUSTAINED_SHARE:.0%} of it assumed to be sustained, "
            f"{card.attention_share:.0%} in attention; PCIe {generation}.0 x{lanes}, "
            f"{LINK_SHARE:.0%} of it ({format_rate(card.pinned_link)}) assumed for copies"
        ),
    )


def find_card(name: str) -> Card:
    """The card that is meant by a name such as "RTX 4090", "4090" or "NVIDIA GeForce rtx4090".

    Where cards differ by memory only ("4060 Ti"), the smaller one is meant unless the size is
    named ("4060 Ti 16GB"). Raises ArgsError, naming near matches, for a name that fits no card.
    """
    model, gib, form = _parts(name)
    fitting = [card for card in CARDS if _parts(card.name)[0] == model]
    fitting = [card for card in fitting if gib in (None, card.device_bytes // GIB)]
    for card in sorted(fitting, key=lambda card: _parts(card.name)[2] != form):
        return card
    near = _near(model)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {_known()}"
    raise ArgsError(f"card {name!r} is not in the table of cards: {hint}")


def _near(model: str) -> list[str]:
    """Up to three cards: those of the same number, or else those spelled alike."""
    number = re.search(r"[0-9]{3,4}", model)
    same = [card.name for card in CARDS if number and number[0] in card.name]
    models = {_parts(card.name)[0]: card.name for card in CARDS}
    alike = difflib.get_close_matches(model, models, n=3, cutoff=0.6)
    return same[:3] or [models[spelled] for spelled in alike]


def _known() -> str:
    return ", ".join(card.name for card in CARDS)


_VENDOR = re.compile(
    r"nvidia|amd|intel|geforce|radeon|tesla|quadro|graphics|rtx|rx|arc|gpu"
    r"|blackwell|workstation|server|edition|generation"
)


def _parts(name: str) -> tuple[str, int | None, str]:
    """Model in small letters without vendor and family, GiB if named, form ("pcie" or "")."""
    text = re.sub(r"\((?:r|tm)\)", " ", name.lower())
    size = re.search(r"\b([0-9]+) ?(?:gib|gb|g)\b", text)
    if size:
        text = text.replace(size[0], " ")
    form = "pcie" if "pcie" in text else ""
    text = re.sub(r"pcie|sxm[0-9]?|hbm[0-9]e?|[^a-z0-9]+", "", text)
    return _VENDOR.sub("", text), int(size[1]) if size else None, form


def _geforce(name: str, memory: tuple[int, float], cores: tuple[int, float], link: str) -> Card:
    """A GeForce card from (GiB, GB/s), (CUDA cores, boost GHz) and "generation x lanes".

    A core does one fp32 FMA a clock; the tensor cores of GA10x, AD10x and GB20x do two bf16 FMAs
    with fp32 accumulation per core and clock (NVIDIA's architecture white papers: 165.2 TFLOP/s
    for the RTX 4090, 71 for the RTX 3090, 209.5 for the RTX 5090).
    """
    gib, gb_per_second = memory
    count, gigahertz = cores
    fp32 = 2 * count * gigahertz * 1e9
    generation, lanes = map(int, link.split("x"))
    return Card(
        name=name,
        device_bytes=gib * GIB,
        memory_rate=gb_per_second * 1e9,
        tensor_flops=2 * fp32,
        flops=fp32,
        pcie=(generation, lanes),
        source=f"NVIDIA's specification of the GeForce {name} ({count} cores at {gigahertz} GHz)",
    )


def _other(name: str, memory: tuple[int, float], tera: tuple[float, float], link: str, source: str,
           ) -> Card:  # fmt: skip
    """A card whose rates are published as such: (GiB, GB/s), (bf16, fp32) in TFLOP/s."""
    generation, lanes = map(int, link.split("x"))
    return Card(
        name=name,
        device_bytes=memory[0] * GIB,
        memory_rate=memory[1] * 1e9,
        tensor_flops=tera[0] * 1e12,
        flops=tera[1] * 1e12,
        pcie=(generation, lanes),
        source=source,
    )


def _turing(name: str, memory: tuple[int, float], cores: tuple[int, float]) -> Card:
    """A GeForce card of Turing: its tensor cores do four fp16 FMAs with fp32 accumulation per core
    and clock (NVIDIA's white paper: 53.8 TFLOP/s for the RTX 2080 Ti); they know no bf16."""
    card = _geforce(name, memory, cores, "3x16")
    return replace(card, tensor_flops=4 * card.flops, bf16=False)


def _laptop(name: str, memory: tuple[int, float], cores: tuple[int, float]) -> Card:
    """A laptop's card at the most that NVIDIA lets a maker clock it; 8 lanes, as most give it."""
    card = _geforce(name, memory, cores, "4x8")
    most = ", the highest that it allows a laptop; 8 lanes are taken to be connected"
    return replace(card, source=card.source + most)


def _sheet(name: str, memory: tuple[int, float], tera: tuple[float, float], link: str) -> Card:
    """A card whose rates NVIDIA's data sheet prints; half of what it prints with sparsity."""
    source = f"NVIDIA's data sheet of the {name} (dense)"
    return _other(name, memory, tera, link, source)


def _as_measured(card: Card) -> Card:
    """With the share of its attention where that is known to be another."""
    if re.match(r"H(100|200|800)", card.name):
        return replace(card, attention_share=HOPPER_ATTENTION)
    if re.match(r"RTX [45]0\d\d(?! Ada)", card.name):
        return replace(card, attention_share=GEFORCE_ATTENTION)
    return card


# Cards of one name are in the order of their memory: the bare name means the first.
_PUBLISHED: tuple[Card, ...] = (
    _geforce("RTX 3060 12GB", (12, 360), (3584, 1.777), "4x16"),
    _geforce("RTX 3060 Ti", (8, 448), (4864, 1.665), "4x16"),
    _geforce("RTX 3070", (8, 448), (5888, 1.725), "4x16"),
    _geforce("RTX 3080 10GB", (10, 760), (8704, 1.71), "4x16"),
    _geforce("RTX 3080 Ti", (12, 912), (10240, 1.665), "4x16"),
    _geforce("RTX 3090", (24, 936), (10496, 1.695), "4x16"),
    _geforce("RTX 3090 Ti", (24, 1008), (10752, 1.86), "4x16"),
    _geforce("RTX 4060", (8, 272), (3072, 2.46), "4x8"),
    _geforce("RTX 4060 Ti 8GB", (8, 288), (4352, 2.535), "4x8"),
    _geforce("RTX 4060 Ti 16GB", (16, 288), (4352, 2.535), "4x8"),
    _geforce("RTX 4070", (12, 504), (5888, 2.475), "4x16"),
    _geforce("RTX 4070 Super", (12, 504), (7168, 2.475), "4x16"),
    _geforce("RTX 4070 Ti", (12, 504), (7680, 2.61), "4x16"),
    _geforce("RTX 4070 Ti Super", (16, 672), (8448, 2.61), "4x16"),
    _geforce("RTX 4080", (16, 716.8), (9728, 2.505), "4x16"),
    _geforce("RTX 4080 Super", (16, 736), (10240, 2.55), "4x16"),
    _geforce("RTX 4090", (24, 1008), (16384, 2.52), "4x16"),
    _geforce("RTX 5060", (8, 448), (3840, 2.497), "5x8"),
    _geforce("RTX 5060 Ti 8GB", (8, 448), (4608, 2.572), "5x8"),
    _geforce("RTX 5060 Ti 16GB", (16, 448), (4608, 2.572), "5x8"),
    _geforce("RTX 5070", (12, 672), (6144, 2.512), "5x16"),
    _geforce("RTX 5070 Ti", (16, 896), (8960, 2.452), "5x16"),
    _geforce("RTX 5080", (16, 960), (10752, 2.617), "5x16"),
    _geforce("RTX 5090", (32, 1792), (21760, 2.407), "5x16"),
    _other("L4", (24, 300), (121, 30.3), "4x16", "NVIDIA's data sheet of the L4 (dense: half of "
           "the rate with sparsity)"),
    _other("L40S", (48, 864), (362, 91.6), "4x16", "NVIDIA's data sheet of the L40S (dense)"),
    _other("A100 40GB", (40, 1555), (312, 19.5), "4x16", "NVIDIA's data sheet of the A100"),
    _other("A100 80GB", (80, 1935), (312, 19.5), "4x16", "NVIDIA's data sheet of the A100 "
           "(PCIe form)"),
    _other("H100 PCIe", (80, 2000), (756, 51), "5x16", "NVIDIA's data sheet of the H100 (PCIe "
           "form, dense)"),
    _other("H100 SXM", (80, 3350), (989, 67), "5x16", "NVIDIA's data sheet of the H100 (SXM form, "
           "dense)"),
    _sheet("A10", (24, 600), (125, 31.2), "4x16"),
    _sheet("A10G", (24, 600), (70, 31.5), "4x16"),
    _sheet("A30", (24, 933), (165, 10.3), "4x16"),
    _sheet("A40", (48, 696), (149.7, 37.4), "4x16"),
    _sheet("L40", (48, 864), (181, 90.5), "4x16"),
    _sheet("H200", (141, 4800), (989, 67), "5x16"),
    _sheet("H800", (80, 3350), (989, 67), "5x16"),
    _sheet("RTX A4000", (16, 448), (76.7, 19.2), "4x16"),
    _sheet("RTX A5000", (24, 768), (111.1, 27.8), "4x16"),
    _sheet("RTX A6000", (48, 768), (154.8, 38.7), "4x16"),
    _sheet("RTX 4000 Ada", (20, 360), (106.9, 26.7), "4x16"),
    _sheet("RTX 5000 Ada", (32, 576), (261.1, 65.3), "4x16"),
    _sheet("RTX 6000 Ada", (48, 960), (364.2, 91.1), "4x16"),
    _other("RTX PRO 6000", (96, 1792), (503.8, 126.0), "5x16", "NVIDIA's specification of the RTX "
           "PRO 6000 Blackwell (24064 cores at 2.617 GHz, eight dense FLOPs in bf16 a core and "
           "clock, twice a GeForce's)"),
    replace(_sheet("T4", (16, 320), (65, 8.1), "3x16"), bf16=False),
    replace(_sheet("V100 16GB", (16, 900), (112, 14), "3x16"), bf16=False),
    replace(_sheet("V100 32GB", (32, 900), (112, 14), "3x16"), bf16=False),
    _turing("RTX 2060", (6, 336), (1920, 1.68)),
    _turing("RTX 2070", (8, 448), (2304, 1.62)),
    _turing("RTX 2070 Super", (8, 448), (2560, 1.77)),
    _turing("RTX 2080", (8, 448), (2944, 1.71)),
    _turing("RTX 2080 Super", (8, 496), (3072, 1.815)),
    _turing("RTX 2080 Ti", (11, 616), (4352, 1.545)),
    _geforce("RTX 3050 8GB", (8, 224), (2560, 1.777), "4x8"),
    _laptop("RTX 3060 Laptop", (6, 336), (3840, 1.703)),
    _laptop("RTX 3070 Laptop", (8, 448), (5120, 1.62)),
    _laptop("RTX 4050 Laptop", (6, 192), (2560, 2.37)),
    _laptop("RTX 4060 Laptop", (8, 256), (3072, 2.37)),
    _laptop("RTX 4070 Laptop", (8, 256), (4608, 2.175)),
    _laptop("RTX 4080 Laptop", (12, 432), (7424, 2.28)),
    _other("RX 7900 XTX", (24, 960), (122.8, 61.4), "4x16", "AMD's specification of the Radeon "
           "RX 7900 XTX"),
    _other("Arc B580", (12, 456), (116.5, 13.67), "4x8", "Intel's specification of the Arc B580 "
           "(233 int8 TOPS; bf16 is half of it on the same matrix engines)"),
)  # fmt: skip

CARDS = tuple(map(_as_measured, _PUBLISHED))
