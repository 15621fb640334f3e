"""What was asked of a run: prompts, clip, budgets and output, checked before anything is read."""

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArgsError, OutputError
from ..layout.writing import check_parent
from ..lora.request import AnyLora, Lora, as_loras
from ..paths import is_there, output_path
from ..plan.inputs.workload import Workload
from ..report.output import MP4, refuse_other
from ..units import format_bytes, parse_bytes

MOST_STEPS = 1000
TEXT_TOKENS = 512  # what Wan's pipelines pad a prompt to


@dataclass(frozen=True, slots=True)
class VideoRequest:
    """One run: a clip for each prompt, all of one size.

    `vram_budget` and `ram_budget` are bytes (or a text, "8GiB"), None for what is there. `image`
    starts the clip (or is a reference for VACE), `last_image` ends it, `video` is what it follows.
    `tiled` asks for the VAE's tiles; None leaves that to the budget. `loras` are those of every
    transformer, `loras_high` and `loras_low` those of one expert alone. `chunk_tokens` is that of
    `BlockSwapArgs`; every `preview_every` steps the first frame is drawn (0: never). Raises
    ArgsError.
    """

    prompts: tuple[str, ...]
    negative: str = ""
    width: int = 832
    height: int = 480
    frames: int = 81
    steps: int = 30
    guidance: float = 5.0
    seed: int = 0
    image: Path | None = None
    video: Path | None = None
    vram_budget: int | None = None
    ram_budget: int | None = None
    tiled: bool | None = None
    loras: tuple[AnyLora, ...] = ()
    loras_high: tuple[AnyLora, ...] = ()
    loras_low: tuple[AnyLora, ...] = ()
    chunk_tokens: int | None = None
    preview_every: int = 0
    last_image: Path | None = None

    def __post_init__(self) -> None:
        Workload(self.width, self.height, self.frames)  # says which sizes and counts there are
        self._refuse_other_types()
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise ArgsError("a prompt without a word was given: say what the clip shows")
        if type(self.steps) is not int or not 1 <= self.steps <= MOST_STEPS:
            raise ArgsError(f"steps={self.steps!r} was asked: give a number from 1 to {MOST_STEPS}")
        if not math.isfinite(self.guidance) or self.guidance < 0:
            raise ArgsError(f"guidance={self.guidance} was asked: give a number from 0 on, as 5")
        if not 0 <= self.seed < 2**63:
            raise ArgsError(f"seed={self.seed} was asked: give a whole number from 0 to 2^63-1")
        if type(self.preview_every) is not int or self.preview_every < 0:
            raise ArgsError(f"preview_every={self.preview_every!r} was asked: give steps, or 0")
        loras = as_loras((*self.loras, *self.loras_high, *self.loras_low))
        if self.last_image is not None and self.image is None:
            raise ArgsError("an image to end with was given, and none to start from: give both")
        for given in (self.image, self.last_image, self.video, *(lora.path for lora in loras)):
            if given is not None and not is_there(given):
                raise ArgsError(f"{given} was given, and it is not there: check the path")

    def _refuse_other_types(self) -> None:
        """Raises ArgsError for what Python callers may give; budgets become bytes."""
        if isinstance(self.prompts, str) or not all(isinstance(one, str) for one in self.prompts):
            raise ArgsError(
                f"prompts={self.prompts!r} was given: give a tuple of texts, one for each clip"
            )
        for name, kinds in (("seed", (int,)), ("guidance", (int, float))):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ArgsError(f"{name}={value!r} was asked: give a number")
        if self.tiled is not None and not isinstance(self.tiled, bool):
            raise ArgsError(f"tiled={self.tiled!r} was given: give True, False, or leave it out")
        for name in ("vram_budget", "ram_budget"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, parse_bytes(getattr(self, name), name=name))

    @property
    def guided(self) -> bool:
        """Whether a step runs the model twice, as diffusers' pipelines decide it."""
        return self.guidance > 1.0

    def workload(self, dtype: str, frames: int, *, per_token: bool, portable: bool) -> Workload:
        """One forward of the transformer of this run, in `dtype`, with that many frames."""
        return Workload(
            self.width,
            self.height,
            frames,
            dtype=dtype,  # type: ignore[arg-type]
            kernels="portable" if portable else "cuda",
            per_token_timestep=per_token,
            text_tokens=TEXT_TOKENS,
        )

    def loras_for(self, transformers: int) -> list[list[Lora]]:
        """The LoRAs of each transformer. Raises ArgsError where one is for an expert of none."""
        if transformers == 1 and (self.loras_high or self.loras_low):
            raise ArgsError(
                "a LoRA for one of two experts was given, and this model has one transformer: give "
                "it by --lora"
            )
        own = (self.loras_high, self.loras_low)
        return [list(as_loras((*self.loras, *more))) for more in own[:transformers]]

    @property
    def raw_frame_bytes(self) -> int:
        """Bytes of all frames of one clip, 8 bits a colour."""
        return 3 * self.width * self.height * self.frames


def read_prompts(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The prompts of a text file, one a line; empty lines are none. Raises ArgsError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ArgsError(f"the prompts in {path} cannot be read ({error}): give a text") from error
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found:
        raise ArgsError(f"{path} holds no prompt: write one a line")
    return found


def output_paths(output: str | os.PathLike[str], clips: int) -> tuple[Path, ...]:
    """Where each clip goes: the name itself for one, `name-1.mp4` ... for more.

    Raises OutputError where a name cannot be written, or is something else's.
    """
    first = output_path(output, added=24)
    if first.suffix.lower() != ".mp4":
        raise OutputError(f"cannot write {first}: the video is an MP4, choose a name with .mp4")
    check_parent(first)
    paths: tuple[Path, ...] = (first,)
    if clips > 1:
        paths = tuple(
            first.with_name(f"{first.stem}-{number}{first.suffix}")
            for number in range(1, clips + 1)
        )
    for path in paths:
        refuse_other(path, MP4)
    if not os.access(first.parent, os.W_OK):
        raise OutputError(f"cannot write {first}: {first.parent} is not yours to write to")
    return paths


def refuse_own_inputs(outputs: Sequence[Path], request: VideoRequest) -> None:
    """Raises OutputError where a file that is read would be written over."""
    for given in (request.image, request.last_image, request.video):
        for output in outputs:
            if given is not None and is_there(output) and output.samefile(given):
                raise OutputError(
                    f"cannot write {output}: the clip is made from it, choose another name"
                )


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raises OutputError where the disk of `folder` has not the bytes that a run may write."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise OutputError(
            f"the run writes up to {format_bytes(needed_bytes)} into {folder}, and "
            f"{format_bytes(free_bytes)} are free: make room or choose another disk"
        )
