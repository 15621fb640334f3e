"""Owns what the MiniMax-H3 benchmark runs: its folder, its limit, its clips and their inputs."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.beyond_ram.case import Case
from blockswap.plan.inputs.workload import Workload
from blockswap.predict.subject import PublishedSubject, Wish
from blockswap.published import PUBLISHED, Made, arguments_of
from blockswap.synth import synth
from blockswap.synth.write import FOLDER_FILE

BLOCKS = 20  # of 50, which would be 66 GB
MODEL = replace(PUBLISHED["minimax-h3"], config={"num_layers": BLOCKS})
SUBJECT = PublishedSubject(MODEL.family, MODEL.config)


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip to be made: frames, pixels of width and height, tokens of its prompt."""

    frames: int
    width: int
    height: int
    text: int

    @property
    def workload(self) -> Workload:
        clip = SUBJECT.clip(Wish((self.width, self.height), self.frames))
        return replace(clip, text_tokens=self.text)

    @property
    def words(self) -> str:
        size = f"{self.width}x{self.height}"
        return f"{self.frames} frames, {size}, {self.text} tokens of text"


def inputs_for(model: Any, clip: Clip) -> dict[str, Any]:
    """Random latents and text, and the layout of one packed sequence: text, sound, frames."""
    draw = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {}
    for name, wanted in arguments_of(MODEL.family, model.config, clip.workload).items():
        assert isinstance(wanted, Made)
        dtype = getattr(torch, wanted.dtype or "bfloat16")
        shape = [int(size) for size in wanted.shape]
        given[name] = torch.rand(shape, generator=draw).to(dtype)
    kinds = ("text_indices", "audio_indices", "video_indices")
    text, sound, frames = (given[name].shape[0] for name in kinds)
    rows = torch.arange(text + sound + frames)
    given.update(zip(kinds, rows.split([text, sound, frames]), strict=True))
    given["token_tags"] = torch.tensor([1] * text + [2] * sound + [0] * frames)
    given["position_ids"][:, 0] = rows
    return {**given, "return_dict": False}


def make(path: Path) -> None:
    """The model's folder at the place of its file's."""
    made = path.parent / "made"
    synth(MODEL, made)
    for file in made.iterdir():
        shutil.move(file, path.parent / file.name)
    made.rmdir()


CASE = Case(
    name="disk_h3",
    title="MiniMax-H3's geometry from the disk, in 6 GB",
    model=f"MiniMaxH3Transformer3DModel of diffusers in bf16 with {BLOCKS} of its 50 blocks",
    limit_bytes=6 * 10**9,
    disk_bytes=29 * 10**9,
    file=FOLDER_FILE,
    make=make,
    opened=lambda path: path.parent,
    lists=("token_refiner.refiner_blocks", "transformer_blocks"),
    # The least that there is, in which the disk binds, and one in which compute begins to.
    clips=(Clip(5, 64, 64, 16), Clip(22, 256, 160, 128)),
    inputs=inputs_for,
)
