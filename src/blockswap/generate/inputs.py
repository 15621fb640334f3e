"""What a clip starts from or follows: an image or a video, read at its size, or refused by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ArgsError
from .request import VideoRequest

_MOST_GREY = 2**16 - 1


def check_inputs(request: VideoRequest) -> None:
    """Reads them once, so that what cannot be read is known before anything is computed.

    Raises ArgsError.
    """
    for path in (request.image, request.last_image):
        if path is not None:
            read_image(path, request)
    if request.video is not None:
        for _ in _frames(request.video, request.frames):
            pass


def image_of(request: VideoRequest) -> Any:
    """The image that the clip starts from."""
    assert request.image is not None
    return read_image(request.image, request)


def read_image(path: Path, request: VideoRequest) -> Any:
    """An image at the clip's size, RGB, upright as its camera says. Raises ArgsError."""
    from PIL import ImageOps

    with _opened(path) as image:
        upright = _eight_bits(ImageOps.exif_transpose(image)).convert("RGB")
    return upright.resize((request.width, request.height))


def is_transparent(path: Path) -> bool:
    """Whether an image can be seen through somewhere. Raises ArgsError."""
    with _opened(path) as image:
        return bool(image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ArgsError(f"{path} cannot be read as an image ({error}): give another") from error


def _eight_bits(image: Any) -> Any:
    """Grey of more bits in 256 steps: a conversion to RGB would make everything white."""
    if image.mode == "F":
        raise ValueError("it has floating-point numbers for colours")
    if not image.mode.startswith("I"):
        return image
    import numpy as np
    from PIL import Image

    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > _MOST_GREY:
        raise ValueError("its grey has more than 16 bits")
    return Image.fromarray((pixels // 257).astype(np.uint8))


def read_frames(path: Path, *, width: int, height: int, most: int) -> list[Any]:
    """The first frames of a video as RGB images of the clip's size. Raises ArgsError."""
    size = (width, height)
    return [frame.to_image().convert("RGB").resize(size) for frame in _frames(path, most)]


def has_more_frames(path: Path, frames: int) -> bool:
    """Whether a video goes on after so many."""
    try:
        for _ in _frames(path, frames + 1):
            pass
    except ArgsError:
        return False
    return True


def _frames(path: Path, most: int) -> Any:
    """That many frames as they are decoded, one after the other."""
    import av

    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it has sound alone, or none")
            for frame in container.decode(video=0):
                count += 1
                yield frame
                if count == most:
                    return
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise ArgsError(f"{path} cannot be read as a video ({error}): give another") from error
    raise ArgsError(f"{path} has {count} frames, and {most} were asked: ask for fewer")
