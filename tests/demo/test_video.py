"""Files a person looks at, read back."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from torch import Tensor

from blockswap.demo.prompt import Prompt, tokens_of
from blockswap.demo.shapes import draw_scenes, random_scenes
from blockswap.demo.video import ENCODERS, write_contact_sheet, write_mp4
from blockswap.errors import OutputError


@pytest.fixture(scope="module")
def frames() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    clip = draw_scenes(random_scenes(tokens_of([Prompt("red", "ball", "right")]), generator))[0]
    return (clip * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def test_video_decodes_to_the_frames_written(frames: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    assert write_mp4(frames, path, fps=6, upscale=10) in ENCODERS
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (320, 320, 6)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == len(frames)
    for got, want in zip(decoded, frames, strict=True):
        # The middle of each enlarged pixel, away from the blur between two colours.
        small = torch.from_numpy(got)[5::10, 5::10].float()
        assert float((small - want.float()).abs().mean()) < 8.0


def test_contact_sheet_shows_every_frame_unchanged(frames: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    write_contact_sheet(frames, path, upscale=3, gap=2)
    with Image.open(path) as image:
        assert image.size == (9 * 98 - 2, 96)
        for index, frame in enumerate(frames):
            for x, y in ((3, 4), (16, 16), (20, 11)):
                pixel = image.getpixel((index * 98 + 3 * x + 1, 3 * y + 1))
                assert pixel == tuple(frame[y, x].tolist())


@pytest.mark.parametrize("write", [write_mp4, write_contact_sheet])
def test_a_folder_that_is_not_there_is_named(write, frames: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "out.mp4"
    with pytest.raises(OutputError, match="missing"):
        write(frames, path)
