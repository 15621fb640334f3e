"""Owns what the 14B benchmark runs: its file, its limit and its clips."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.beyond_ram.case import Case
from benchmarks.shared.forward import inputs_of
from blockswap.synth import synth

VARIANT = "wan2.1-t2v-14b"
TEXT_TOKENS = 512  # as the official pipeline pads to


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip to be made: frames, and pixels of width and height."""

    frames: int
    width: int
    height: int

    @property
    def latent(self) -> tuple[int, int, int]:
        return ((self.frames - 1) // 4 + 1, self.height // 8, self.width // 8)

    @property
    def words(self) -> str:
        frames, height, width = self.latent
        tokens = frames * (height // 2) * (width // 2)
        said = "1 frame" if self.frames == 1 else f"{self.frames} frames"
        return f"{said}, {self.width}x{self.height}, {tokens} tokens"


def inputs_for(_: Any, clip: Clip) -> dict[str, Any]:
    return inputs_of(clip.latent, TEXT_TOKENS, torch.bfloat16, seed=0)


def make(path: Path) -> None:
    synth(VARIANT, path)


CASE = Case(
    name="disk_14b",
    title="A 14B checkpoint from the disk, in 4 GB",
    model=f"{VARIANT} in bf16",
    limit_bytes=4 * 10**9,
    disk_bytes=30 * 10**9,
    file=f"{VARIANT}.safetensors",
    make=make,
    opened=lambda path: path,
    lists=("blocks",),
    # One small frame, in which 512 tokens of text take about as long as the disk does, and a clip.
    clips=(Clip(1, 32, 32), Clip(5, 256, 144)),
    inputs=inputs_for,
)
