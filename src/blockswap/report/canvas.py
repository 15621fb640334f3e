"""The page that pictures are drawn on: width, fonts, antialiasing, axis steps, PNG output.

Coordinates are points of a page `PAGE_WIDTH` wide, whatever the width of the picture. The page is
painted at twice its size and reduced at the end, so a bar narrower than a pixel still shows in
its true width, as a paler one.
"""

import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..errors import OutputError
from .output import write_whole

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

PAGE_WIDTH = 1600
_FINER = 2

Anchor = Literal["lm", "mm", "rm"]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in points: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def middle(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


@dataclass(slots=True)
class Canvas:
    """A white page. Colours are `#rrggbb`, sizes and places are points."""

    image: "Image.Image"
    draw: "ImageDraw.ImageDraw"
    scale: float
    fonts: dict[float, "ImageFont.FreeTypeFont | ImageFont.ImageFont"] = field(default_factory=dict)

    def fill(self, box: Box, colour: str) -> None:
        """Fills a rectangle; one that is narrower than the finest dot is a dot wide."""
        left, top = round(box.left * self.scale), round(box.top * self.scale)
        right = max(left + 1, round(box.right * self.scale))
        bottom = max(top + 1, round(box.bottom * self.scale))
        # Pillow paints the last row and column too.
        self.draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)

    def write(
        self,
        place: tuple[float, float],
        text: str,
        *,
        size: float,
        colour: str,
        anchor: Anchor = "lm",
    ) -> None:
        """Writes one line whose left, middle or right end stands at `place`, centred in height."""
        place = place[0] * self.scale, place[1] * self.scale
        font = self._font(size)
        self.draw.text(place, _writable(text), fill=colour, font=font, anchor=anchor)

    def width_of(self, text: str, size: float) -> float:
        """Width of a line in points."""
        return self.draw.textlength(_writable(text), font=self._font(size)) / self.scale

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the PNG, whole or not at all. Raises OutputError."""
        from PIL import Image

        width, height = self.image.size
        size = (width // _FINER, height // _FINER)
        picture = self.image.resize(size, Image.Resampling.BOX)
        write_whole(path, lambda file: picture.save(file, format="PNG", optimize=True))

    def _font(self, size: float) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
        if size not in self.fonts:
            from PIL import ImageFont

            self.fonts[size] = ImageFont.load_default(size * self.scale)
        return self.fonts[size]


def new_canvas(width: int, height: float) -> Canvas:
    """A page `width` pixels wide and `height` points high.

    Raises OutputError where Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise OutputError(
            "cannot draw the timeline: Pillow is not installed, run: pip install pillow"
        ) from error
    scale = width * _FINER / PAGE_WIDTH
    image = Image.new(
        "RGB", (width * _FINER, round(height * width / PAGE_WIDTH) * _FINER), "#ffffff"
    )
    return Canvas(image, ImageDraw.Draw(image), scale)


def _writable(text: str) -> str:
    # The font inside Pillow (Aileron, a subset) has no micro sign.
    return text.replace("µ", "u")


def round_step(most: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is not above `most`: for ticks of an axis.

    A billionth above counts as equal: 0.6 / 6 is a little less than 0.1, whose logarithm it has.
    """
    power = 10.0 ** math.floor(math.log10(most))
    return max(power * factor for factor in (1, 2, 5) if power * factor <= most * (1 + 1e-9))
