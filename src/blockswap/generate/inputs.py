"""What a clip starts from or follows: an image or a video, read at its size, or refused by name."""

from pathlib import Path
from typing import Any

from ..errors import ArgsError
from .request import VideoRequest


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
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ArgsError(f"{path} cannot be read as an image ({error}): give another") from error
    return upright.resize((request.width, request.height))


def read_frames(path: Path, *, width: int, height: int, most: int) -> list[Any]:
    """The first frames of a video as RGB images of the clip's size. Raises ArgsError."""
    size = (width, height)
    return [frame.to_image().convert("RGB").resize(size) for frame in _frames(path, most)]


def _frames(path: Path, most: int) -> Any:
    """That many frames as they are decoded, one after the other."""
    import av

    count = 0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                count += 1
                yield frame
                if count == most:
                    return
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise ArgsError(f"{path} cannot be read as a video ({error}): give another") from error
    raise ArgsError(f"{path} has {count} frames, and {most} were asked: ask for fewer")
