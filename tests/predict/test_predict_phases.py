"""The models beside the transformer, and the peak of a whole generation."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from blockswap.adapters.vae import build_vae
from blockswap.errors import ArgsError
from blockswap.layout.geometry import find_variant
from blockswap.plan.inputs.margin import MARGIN, NO_MARGIN
from blockswap.plan.inputs.workload import Workload
from blockswap.predict import (
    Companions,
    predict_generation,
    predict_text_encoder,
    predict_vae,
    vae_of,
)
from blockswap.predict.module import record_call
from blockswap.predict.recorder import Recorder
from blockswap.predict.text_encoder import UMT5_XXL
from blockswap.predict.vae_chunks import record_vae
from blockswap.units import GIB, MIB

LARGE, SMALL = find_variant("wan2.1-t2v-14b"), find_variant("wan2.1-t2v-1.3b")
CLIP = Workload(1280, 720, 81)


# ---- text encoder ---------------------------------------------------------------------------


def test_sizes_of_the_published_text_encoders() -> None:
    assert UMT5_XXL.embedding_parameters + UMT5_XXL.linear_parameters == 5_680_910_336
    # umt5_xxl as bf16 is a file of 11.4 GB, with fp8 matrices one of 6.7 GB.
    assert predict_text_encoder().weight_bytes == pytest.approx(11.36e9, rel=0.01)
    assert predict_text_encoder(dtype="float8").weight_bytes == pytest.approx(6.73e9, rel=0.01)


class VendorNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * (x * scale).type_as(self.weight)


class VendorBlock(nn.Module):
    """The steps of a UMT5 block in the order in which Wan-Video's own encoder takes them."""

    def __init__(self, dim: int, ffn: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = VendorNorm(dim), VendorNorm(dim)
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.gate, self.fc1 = nn.Linear(dim, ffn, bias=False), nn.Linear(dim, ffn, bias=False)
        self.fc2 = nn.Linear(ffn, dim, bias=False)
        self.position = nn.Embedding(32, heads)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.norm1(x), mask, self.bias(x.shape[1], x.device))
        return x + self.feed(self.norm2(x))

    def bias(self, tokens: int, device: torch.device) -> torch.Tensor:
        at = torch.arange(tokens, device=device)
        return (
            self.position((at[None] - at[:, None]).abs() % 32).permute(2, 0, 1)[None].contiguous()
        )

    def attend(self, x: torch.Tensor, mask: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.q, self.k, self.v))
        added = x.new_zeros(x.shape[0], self.heads, x.shape[1], x.shape[1])
        added += bias
        added.masked_fill_(mask[:, None, None] == 0, -1e4)
        scores = torch.einsum("binc,bjnc->bnij", q, k) + added
        scores = scores.float().softmax(-1).type_as(scores)
        return self.o(torch.einsum("bnij,bjnc->binc", scores, v).flatten(2))

    def feed(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(x) * self.gelu(self.gate(x)))

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
        return 0.5 * x * (1.0 + torch.tanh(inner))


def followed(model: nn.Module, dtype: torch.dtype, mask: torch.Tensor, batch: int) -> Any:
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    tokens = torch.empty(batch, 512, 4096, dtype=dtype, device="meta")
    recorder = Recorder(model.parameters())
    return record_call(recorder, model, ((tokens, mask), {}), label="a text encoder")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_formula_is_the_peak_of_the_vendors_way(dtype: Any, batch: int) -> None:
    with torch.device("meta"):
        block = VendorBlock(UMT5_XXL.dim, UMT5_XXL.ffn_dim, UMT5_XXL.heads)
        mask = torch.empty(batch, 512, dtype=torch.int64)
    cost = predict_text_encoder(batch=batch, dtype=dtype)
    peak = followed(block, getattr(torch, dtype), mask, batch)
    assert cost.activation_bytes == pytest.approx(peak.activation_bytes, rel=0.02)
    assert cost.flops == pytest.approx(24 * peak.flops, rel=0.01)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_transformers_needs_no_more(dtype: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.UMT5Config(
        vocab_size=UMT5_XXL.vocabulary,
        d_model=UMT5_XXL.dim,
        d_kv=64,
        d_ff=UMT5_XXL.ffn_dim,
        num_layers=UMT5_XXL.layers,
        num_heads=UMT5_XXL.heads,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        model = transformers.UMT5EncoderModel(config).eval()
        mask = torch.empty(1, 1, 512, 512, dtype=getattr(torch, dtype))
        ids = torch.empty(1, 512, dtype=torch.int64)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    cost = predict_text_encoder(dtype=dtype)
    assert sum(p.nbytes for p in model.parameters()) == cost.weight_bytes
    peak = record_call(Recorder(model.parameters()), model, ((ids, mask), {}), label="UMT5")
    assert peak.activation_bytes <= cost.activation_bytes
    assert peak.flops == cost.flops


def test_an_unknown_dtype() -> None:
    with pytest.raises(ArgsError, match="dtype='int4' of the text encoder"):
        predict_text_encoder(dtype="int4")  # type: ignore[arg-type]


# ---- VAE ------------------------------------------------------------------------------------


def test_sizes_of_the_published_vaes() -> None:
    """Wan2.1_VAE.pth has 508 MB, Wan2.2_VAE.pth 2.82 GB, both in fp32."""
    for version, parameters in (("wan2.1", 126_892_531), ("wan2.2", 704_688_668)):
        vae = build_vae(version, torch.float32)
        assert sum(parameter.numel() for parameter in vae.parameters()) == parameters
    assert vae_of(LARGE) == "wan2.1"
    assert vae_of(find_variant("wan2.2-ti2v-5b")) == "wan2.2"


@pytest.mark.parametrize(
    ("version", "task", "tiled"),
    [
        ("wan2.1", "decode", False),
        ("wan2.1", "decode", True),
        ("wan2.1", "encode", True),
        ("wan2.2", "decode", True),
        ("wan2.2", "encode", False),
    ],
)
def test_chunks_that_are_alike_may_be_followed_once(version: str, task: str, tiled: bool) -> None:
    """Every chunk and every blended line followed, or not: the same peak."""
    size = (4, 34, 28) if version == "wan2.1" else (4, 18, 12)
    every = record_vae(build_vae(version, torch.bfloat16), task, size, tiled=tiled, repeat=False)
    once = record_vae(build_vae(version, torch.bfloat16), task, size, tiled=tiled)
    assert once == every


def test_only_the_clip_and_its_latents_grow_with_time() -> None:
    """Features of two latent frames are kept, whatever the length."""
    short, long = (predict_vae(Workload(256, 256, n)) for n in (41, 81))
    assert long.output_bytes == 81 * 3 * 256 * 256 * 4
    latents = 2 * 16 * 32 * 32 * 4 * (21 - 11)  # as given, and after the first convolution
    grown = long.activation_bytes - short.activation_bytes
    assert grown == long.output_bytes - short.output_bytes + latents


def test_tiles_need_less() -> None:
    whole, tiled = (predict_vae(Workload(512, 512, 5), tiled=t) for t in (False, True))
    assert tiled.activation_bytes < whole.activation_bytes / 2
    assert tiled.output_bytes == whole.output_bytes
    half = predict_vae(Workload(512, 512, 5), dtype="bfloat16")
    assert half.weight_bytes == whole.weight_bytes / 2
    # Not half: the upsampler computes in fp32.
    assert half.activation_bytes < whole.activation_bytes


def test_refusals_of_the_vae() -> None:
    with pytest.raises(ArgsError, match="version='wan3' of the VAE is unknown: use one of wan2"):
        predict_vae(CLIP, version="wan3")  # type: ignore[arg-type]
    with pytest.raises(ArgsError, match="task='train' of the VAE is unknown"):
        predict_vae(CLIP, task="train")  # type: ignore[arg-type]


# ---- the whole ------------------------------------------------------------------------------


def test_the_peak_of_a_generation_is_that_of_its_largest_phase() -> None:
    clip, geometry = Workload(320, 320, 9), replace(SMALL, num_layers=2)
    found = predict_generation(geometry, clip)
    needs = {need.name: need for need in found.phases(2 * GIB)}
    assert list(needs) == ["text encoding", "denoising", "decoding"]
    assert found.peak_bytes(2 * GIB) == needs["text encoding"].peak_bytes  # 10.6 GiB of weights
    least = needs["denoising"].activation_bytes
    assert found.peak_bytes(20 * GIB) == 20 * GIB + least
    assert least == found.denoising.activation_bytes + found.carried_bytes
    thrifty = predict_generation(geometry, clip, Companions("float8", "bfloat16", vae_tiled=True))
    assert thrifty.text_encoding.weight_bytes < found.text_encoding.weight_bytes
    assert thrifty.decoding.peak_bytes < found.decoding.peak_bytes
    assert thrifty.denoising == found.denoising


@pytest.mark.parametrize(
    "followed",
    [{"in_channels": 36}, {"vace_layers": (0,), "vace_in_channels": 96}],
)
def test_models_that_follow_an_image_or_a_video_encode_it(followed: dict[str, Any]) -> None:
    geometry = replace(SMALL, num_layers=2, **followed)
    found = predict_generation(geometry, Workload(128, 128, 9))
    assert [need.name for need in found.phases(0)][1] == "conditioning"
    assert found.conditioning is not None


def test_margins() -> None:
    assert NO_MARGIN.of(10 * GIB) == 0
    assert MARGIN.of(0) == 256 * MIB
    assert MARGIN.of(100 * MIB) == 261 * MIB
