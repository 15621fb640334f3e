"""The VAE's peak, chunk by chunk on meta tensors; chunks of equal shapes are run once.

chunk    0       1       2       3       4 ...     of one tile, or of the whole picture
cache    empty   1st     full    full    full      features of the last two latent frames
follow   yes     yes     yes     as 2    as 2      same shapes in, same shapes in the cache
"""

from dataclasses import dataclass
from typing import Any

import torch

from ..adapters.vae import build_vae
from .module import record_call
from .phase import PhaseCost
from .recorder import Recorder


def follow_vae(
    version: str, task: str, size: tuple[int, int, int], *, tiled: bool, dtype: str
) -> PhaseCost:
    """Follows decoding or encoding of one clip of latent (frames, height, width) `size`."""
    element: torch.dtype = getattr(torch, dtype)
    return record_vae(build_vae(version, element), task, size, tiled=tiled)


def record_vae(
    vae: Any,
    task: str,
    size: tuple[int, int, int],
    *,
    tiled: bool,
    on_host: bool = False,
    repeat: bool = True,
) -> PhaseCost:
    """The same for a given VAE on meta; `repeat=False` follows every chunk (for tests)."""
    recorder = Recorder(vae.parameters(), on_host=on_host)
    weight_bytes = sum(parameter.nbytes for parameter in vae.parameters())
    if repeat:
        vae.decoder = LikeChunks(vae.decoder, recorder)
        vae.encoder = LikeChunks(vae.encoder, recorder)
        # Blending works in place on one line of pixels at a time, thousands of times; what it needs
        # is less than the row of tiles that is joined next.
        vae.blend_v = vae.blend_h = _unblended
    if tiled:
        vae.enable_tiling()
    inputs = torch.empty(_input_shape(vae, task, size), dtype=vae.dtype, device="meta")
    work = vae.decode if task == "decode" else vae.encode
    cost = record_call(recorder, work, ((inputs,), {"return_dict": False}), label="the VAE")
    return PhaseCost(
        weight_bytes=weight_bytes,
        activation_bytes=cost.activation_bytes,
        output_bytes=cost.output_bytes,
        flops=cost.flops,
    )


def _unblended(_: torch.Tensor, tile: torch.Tensor, __: int) -> torch.Tensor:
    return tile


def _input_shape(vae: Any, task: str, size: tuple[int, int, int]) -> tuple[int, ...]:
    frames, height, width = size
    if task == "decode":
        return (1, vae.config.z_dim, frames, height, width)
    scale = vae.spatial_compression_ratio
    return (1, 3, 4 * (frames - 1) + 1, height * scale, width * scale)


@dataclass(frozen=True, slots=True)
class _Form:
    """A contiguous tensor that has its memory to itself."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def fresh(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What a chunk did: its peak above the bytes alive before it, its result, what it kept.

    `kept` are the features it left: forms of tensors, or marks that are none (None, "Rep").
    """

    peak_bytes: int
    flops: int
    result: _Form
    kept: tuple[Any, ...]
    convolutions: int


class LikeChunks(torch.nn.Module):
    """Stands before the VAE's encoder or decoder and repeats what it did for a chunk like this.

    A chunk is like another if its input and the features kept before it have the same shapes. It
    leaves its result and features of its own, and everything else is gone when it returns.
    """

    def __init__(self, inner: torch.nn.Module, recorder: Recorder) -> None:
        super().__init__()
        self.inner = inner
        self._recorder = recorder
        self._known: dict[Any, _Chunk] = {}

    def forward(self, x: torch.Tensor, feat_cache: Any, feat_idx: Any, **flags: Any) -> Any:
        key = (x.shape, x.dtype, tuple(flags.items()), tuple(map(_shape, feat_cache)))
        if key in self._known:
            return self._repeat(self._known[key], feat_cache, feat_idx)
        return self._follow(key, x, feat_cache, feat_idx, flags)

    def _follow(
        self, key: Any, x: torch.Tensor, feat_cache: Any, feat_idx: Any, flags: dict[str, Any]
    ) -> torch.Tensor:
        flops = self._recorder.rest_flops
        with self._recorder.own_peak() as peak:
            result: torch.Tensor = self.inner(x, feat_cache=feat_cache, feat_idx=feat_idx, **flags)
            peak_bytes = peak()
        kept = tuple(
            _form(feature) if isinstance(feature, torch.Tensor) else feature
            for feature in feat_cache
        )
        self._known[key] = _Chunk(
            peak_bytes=peak_bytes,
            flops=self._recorder.rest_flops - flops,
            result=_form(result),
            kept=kept,
            convolutions=feat_idx[0],
        )
        return result

    def _repeat(self, chunk: _Chunk, feat_cache: Any, feat_idx: Any) -> torch.Tensor:
        self._recorder.spike(chunk.peak_bytes)
        self._recorder.add_flops(chunk.flops)
        for index, kept in enumerate(chunk.kept):
            feat_cache[index] = None  # the old one goes first
            feat_cache[index] = kept.fresh() if isinstance(kept, _Form) else kept
        feat_idx[0] = chunk.convolutions
        return chunk.result.fresh()


def like_calls(inner: torch.nn.Module, recorder: Recorder) -> torch.nn.Module:
    """The same for a decoder that keeps nothing between tiles: equal shapes are run once."""
    return _LikeCalls(inner, recorder)


class _LikeCalls(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module, recorder: Recorder) -> None:
        super().__init__()
        self.inner = inner
        self._recorder = recorder
        self._known: dict[Any, _Chunk] = {}

    def forward(self, x: torch.Tensor, *args: Any, **named: Any) -> Any:
        key = (x.shape, x.dtype, tuple(map(_shape, args)), tuple(named.items()))
        if (known := self._known.get(key)) is not None:
            self._recorder.spike(known.peak_bytes)
            self._recorder.add_flops(known.flops)
            return known.result.fresh()
        flops = self._recorder.rest_flops
        with self._recorder.own_peak() as peak:
            result: torch.Tensor = self.inner(x, *args, **named)
            peak_bytes = peak()
        if result.untyped_storage().nbytes() == result.nbytes:
            flops = self._recorder.rest_flops - flops
            self._known[key] = _Chunk(peak_bytes, flops, _form(result), (), 0)
        return result


def _shape(feature: Any) -> Any:
    """Of a tensor; marks that are no tensors (None, "Rep") stand for themselves."""
    return tuple(feature.shape) if isinstance(feature, torch.Tensor) else feature


def _form(tensor: torch.Tensor) -> _Form:
    assert tensor.untyped_storage().nbytes() == tensor.nbytes, "a view would keep more alive"
    return _Form(tuple(tensor.shape), tensor.dtype)
