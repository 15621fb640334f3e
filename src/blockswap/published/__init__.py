"""Published models beside Wan's, as data: their classes, sizes, inputs, VAEs and text encoders."""

from .catalogue import FAMILIES, PUBLISHED, family_of, find_published
from .parts import with_parts_of
from .record import Each, Encoder, Family, Made, Part, Published, Soundtrack, Where
from .relatives import WAN_VAE
from .sizes import arguments_of, resolved, sizes_of

__all__ = [
    "FAMILIES",
    "PUBLISHED",
    "WAN_VAE",
    "Each",
    "Encoder",
    "Family",
    "Made",
    "Part",
    "Published",
    "Soundtrack",
    "Where",
    "arguments_of",
    "family_of",
    "find_published",
    "resolved",
    "sizes_of",
    "with_parts_of",
]
