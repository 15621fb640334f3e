"""The clip: which sizes and frame counts a model takes, latents and tokens, a forward's cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from ...errors import ArgsError
from ...layout.geometry import WanGeometry

AttentionKind = Literal["flash", "math"]
KernelSet = Literal["cuda", "portable"]
ComputeDtype = Literal["bfloat16", "float16", "float32"]

# Far above any clip, and so low that no count of bytes or operations overflows 64 bits.
MOST = 1_000_000
MOST_PIXELS = 2**34


@dataclass(frozen=True, slots=True)
class Grid:
    """Which clips a model takes: sizes that are multiples of `pixels`, `step` * k + `first` frames.

    Those are `per_step` * k + `lead` latent frames. `step` 0: single pictures. The defaults are
    Wan's: 8 pixels of the smallest VAE times 2 of the patch, 4 frames per latent frame.
    """

    pixels: int = 16
    step: int = 4
    first: int = 1
    per_step: int = 1
    lead: int = 1
    whose: str = "Wan's VAE"

    def latent_frames(self, frames: int) -> int:
        return self.per_step * self._steps(frames) + self.lead

    def clips(self, frames: int) -> int:
        """How many counts of frames there are up to this one."""
        return self._steps(frames) + 1

    def check_frames(self, frames: int) -> None:
        """Raises ArgsError, naming the nearest counts that would do."""
        if not self.step and frames != self.first:
            raise ArgsError(f"frames={frames}, and {self.whose} makes single pictures: use 1")
        if self.step and (frames - self.first) % self.step:
            lower = self.step * self._steps(frames) + self.first
            near = [count for count in (lower, lower + self.step) if count > 0]
            raise ArgsError(
                f"frames={frames} is not {self.step}k+{self.first}, as {self.whose} has it: "
                f"use {' or '.join(map(str, near))}"
            )

    def _steps(self, frames: int) -> int:
        return (frames - self.first) // self.step if self.step else 0


WAN_GRID = Grid()


@dataclass(frozen=True, slots=True)
class Workload:
    """One forward of the transformer: the clip, and how it is computed.

    `batch` is 2 where both halves of classifier-free guidance go through one forward. `attention`:
    "flash" keeps no matrix of tokens x tokens (flash, memory-efficient, cuDNN, Sage), "math" makes
    it. `kernels`: "cuda" has one kernel for an RMS norm, as torch has for CUDA and ROCm; elsewhere
    ("portable") torch composes it of five operations whose results take memory.
    `per_token_timestep` is Wan2.2 TI2V's way (a timestep for every token). `grid` says which clips
    the model takes. Raises ArgsError.
    """

    width: int
    height: int
    frames: int
    batch: int = 1
    dtype: ComputeDtype = "bfloat16"
    attention: AttentionKind = "flash"
    kernels: KernelSet = "cuda"
    per_token_timestep: bool = False
    text_tokens: int = 512
    grid: Grid = WAN_GRID

    def __post_init__(self) -> None:
        for name in ("width", "height", "frames", "batch", "text_tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ArgsError(f"{name}={value!r} is no positive whole number: give one")
            if value > MOST:
                raise ArgsError(
                    f"{name}={_short(value)} is more than any clip has: give at most {MOST:,}"
                )
        if self.width * self.height * self.frames * self.batch > MOST_PIXELS:
            raise ArgsError(
                f"{self.words} is more than any clip has: give at most {MOST_PIXELS:,} pixels in "
                "all frames together"
            )
        for name in ("width", "height"):
            check_multiple(name, getattr(self, name), self.grid.pixels)
        self.grid.check_frames(self.frames)
        for name, kinds in (
            ("dtype", ComputeDtype),
            ("attention", AttentionKind),
            ("kernels", KernelSet),
        ):
            if getattr(self, name) not in get_args(kinds):
                raise ArgsError(
                    f"{name}={getattr(self, name)!r} is unknown: use one of "
                    f"{', '.join(get_args(kinds))}"
                )

    @property
    def words(self) -> str:
        """The clip in words: "1280x720, 81 frames"."""
        said = f"{self.width}x{self.height}"
        if self.grid.step:
            said += f", {self.frames} frames"
        return said if self.batch == 1 else f"{said}, batch {self.batch}"

    @property
    def latent_frames(self) -> int:
        return self.grid.latent_frames(self.frames)


def _short(value: int) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:8]}... ({len(text)} digits)"


def check_multiple(name: str, value: int, step: int) -> None:
    """Raises ArgsError, naming the nearest sizes that would do, unless `step` divides `value`."""
    if value % step:
        lower = value // step * step
        near = f"{lower} or {lower + step}" if lower else str(step)
        raise ArgsError(f"{name}={value} is no multiple of {step}: use {near}")


def pixels_per_latent(geometry: WanGeometry) -> int:
    """Width in pixels of one latent: 16 for the VAE of Wan2.2 TI2V (48 channels), else 8."""
    return 16 if geometry.out_channels == 48 else 8


def has_token_timesteps(geometry: WanGeometry) -> bool:
    """Whether the model's pipelines give it a timestep for every token: Wan2.2 TI2V alone."""
    return geometry.out_channels == 48


def latent_size(geometry: WanGeometry, workload: Workload) -> tuple[int, int, int]:
    """Latent (frames, height, width). Raises ArgsError where the model cannot cut the clip so."""
    scale, patch = pixels_per_latent(geometry), geometry.patch_size
    check_multiple("height", workload.height, scale * patch[1])
    check_multiple("width", workload.width, scale * patch[2])
    return workload.latent_frames, workload.height // scale, workload.width // scale


def token_count(geometry: WanGeometry, workload: Workload) -> int:
    """Video tokens of one clip of the batch: patches of the latent."""
    return prod(latent_size(geometry, workload)) // prod(geometry.patch_size)


@dataclass(frozen=True, slots=True)
class ForwardCost:
    """What one forward costs beside its weights.

    `activation_bytes` is the most that is alive at once, inputs included and weights, slots and
    buffers of the swap not; every tensor is rounded up to the allocator's 512 bytes. `unit_flops`
    are (unit, FLOPs) in execution order, a unit that ran twice summed up; `rest_flops` are those
    outside of units. FLOPs are of products (2 per multiply-add), convolutions and attention;
    `attention_flops` are those of them that a unit spends in one attention kernel.
    """

    activation_bytes: int
    input_bytes: int
    output_bytes: int
    unit_flops: tuple[tuple[str, int], ...] = ()
    rest_flops: int = 0
    attention_flops: tuple[tuple[str, int], ...] = ()

    @property
    def flops_by_unit(self) -> Mapping[str, int]:
        return dict(self.unit_flops)

    @property
    def flops(self) -> int:
        """Of the whole forward."""
        return self.rest_flops + sum(flops for _, flops in self.unit_flops)
