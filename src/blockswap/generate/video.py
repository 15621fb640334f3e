"""How frames become an MP4: encoded one by one as they come, and put in its place when whole."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ArgsError
from ..report.output import write_whole

# Best first: a build of FFmpeg may come without an H.264 encoder, but always has MPEG-4.
ENCODERS: tuple[str, ...] = ("libx264", "libopenh264", "mpeg4")
# Without macroblock trees: with them x264 looks at memory that nobody wrote, and the same frames
# become another file each time.
_QUALITY = {"libx264": {"crf": "16", "mbtree": "0"}}


def require_writer() -> str:
    """The encoder that will be used. Raises ArgsError where PyAV is not installed."""
    try:
        from av.codec import codecs_available
    except ImportError as error:
        raise ArgsError(
            f"writing a video needs PyAV, which could not be imported ({error}): "
            'pip install "wanvideo-blockswap[generate]"'
        ) from error
    return next((name for name in ENCODERS if name in codecs_available), ENCODERS[-1])


def write_video(path: Path, frames: Iterable[Any], *, width: int, height: int, fps: int) -> None:
    """Writes uint8 frames `[height, width, 3]`; one is held at a time. Raises OutputError.

    What was at `path` stays until the new file is whole.
    """

    def encode(file: BinaryIO) -> None:
        encode_video(file, frames, width=width, height=height, fps=fps)

    write_whole(path, encode)


def encode_video(
    file: BinaryIO, frames: Iterable[Any], *, width: int, height: int, fps: int
) -> None:
    """The same into an open file that can be sought in."""
    import av

    encoder = require_writer()
    with av.open(file, mode="w", format="mp4") as container:
        stream = container.add_stream(encoder, rate=Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = _QUALITY.get(encoder, {})
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
