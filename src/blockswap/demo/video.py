"""Owns the files that a person looks at: an MP4 and a contact sheet of a clip."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from ..report.output import write_whole

# Best first: a build of FFmpeg may come without an H.264 encoder, but always has MPEG-4.
ENCODERS: tuple[str, ...] = ("libx264", "libopenh264", "mpeg4")


def write_mp4(frames: Tensor, path: Path | str, fps: int = 8, upscale: int = 10) -> str:
    """Writes uint8 frames `[frames, height, width, 3]`, each pixel a square `upscale` wide.

    Returns the name of the encoder used. Raises OutputError.
    """
    import av

    encoder = _first_encoder()
    large = _enlarge(frames, upscale)

    def encode(file: BinaryIO) -> None:
        with av.open(file, mode="w", format="mp4") as container:
            stream = container.add_stream(encoder, rate=Fraction(fps))
            stream.height, stream.width = large.shape[1], large.shape[2]
            stream.pix_fmt = "yuv420p"
            if encoder == "libx264":
                # Macroblock trees look at memory that nobody wrote: each file would be another.
                stream.options = {"crf": "16", "mbtree": "0"}
            for frame in large.numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))

    write_whole(path, encode)
    return encoder


def write_contact_sheet(frames: Tensor, path: Path | str, upscale: int = 4, gap: int = 4) -> None:
    """Writes all frames `[frames, height, width, 3]` side by side as one PNG."""
    from PIL import Image

    large = _enlarge(frames, upscale)
    count, height, width, _ = large.shape
    sheet = Image.new("RGB", (count * (width + gap) - gap, height), "white")
    for index, frame in enumerate(large.numpy()):
        sheet.paste(Image.fromarray(frame), (index * (width + gap), 0))
    write_whole(path, lambda file: sheet.save(file, format="PNG"))


def _enlarge(frames: Tensor, upscale: int) -> Tensor:
    """Repeats pixels: `[frames, height * upscale, width * upscale, 3]`."""
    return frames.repeat_interleave(upscale, dim=1).repeat_interleave(upscale, dim=2).contiguous()


def _first_encoder() -> str:
    from av.codec import codecs_available

    available = set(codecs_available)
    return next((name for name in ENCODERS if name in available), ENCODERS[-1])
