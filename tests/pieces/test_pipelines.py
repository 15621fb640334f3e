"""Whole pipelines of diffusers with their transformers in pieces: every frame is equal."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from typing import Any

import pytest
import torch
from clips import some_of

from blockswap import BlockSwapArgs, swap_blocks
from blockswap.pieces import Pieces

diffusers = pytest.importorskip("diffusers")
hooks = pytest.importorskip("diffusers.hooks")

DIM, TEXT = 48, 32
FRAMES, SIDE = 17, 64  # 5 x 4 x 4 = 80 tokens of the 2.1 VAE
PATCHES = {"height": 64, "width": 96, "num_frames": FRAMES}


def transformer(kind: str = "t2v") -> Any:
    torch.manual_seed(len(kind))
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": DIM // 2,
        "ffn_dim": 96,
        "num_layers": 3,
        "text_dim": TEXT,
        "freq_dim": 32,
    }
    if kind == "vace":
        found = diffusers.WanVACETransformer3DModel(
            **config, vace_layers=[0, 2], vace_in_channels=96
        )
    elif kind == "i2v":
        found = diffusers.WanTransformer3DModel(
            **config, in_channels=36, image_dim=40, added_kv_proj_dim=DIM
        )
    elif kind == "5b":
        found = diffusers.WanTransformer3DModel(**config, in_channels=16, out_channels=16)
    else:
        found = diffusers.WanTransformer3DModel(**config)
    return found.eval()


def vae() -> Any:
    torch.manual_seed(9)
    return diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ).eval()  # fmt: skip


def pipeline(kind: str) -> Any:
    shared = {
        "tokenizer": None,
        "text_encoder": None,
        "vae": vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    }
    if kind == "vace":
        return diffusers.WanVACEPipeline(transformer=transformer("vace"), **shared)
    if kind == "i2v":
        return diffusers.WanImageToVideoPipeline(
            transformer=transformer("i2v"), image_encoder=None, image_processor=None, **shared
        )
    if kind == "experts":
        return diffusers.WanPipeline(
            transformer=transformer("t2v"),
            transformer_2=transformer("t2v-2"),
            boundary_ratio=0.5,
            **shared,
        )
    return diffusers.WanPipeline(
        transformer=transformer(kind), expand_timesteps=kind == "5b", **shared
    )


def frames(kind: str, pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(4)
    given: dict[str, Any] = {
        "prompt_embeds": torch.randn(1, 512, TEXT, generator=draw),
        "negative_prompt_embeds": torch.randn(1, 512, TEXT, generator=draw),
        "num_inference_steps": 3,
        "generator": torch.Generator().manual_seed(3),
        "output_type": "pt",
        **PATCHES,
    }
    if kind == "i2v":
        given["image"] = torch.rand(1, 3, 64, 96, generator=draw)
        seen = torch.randn(1, 257, 40, generator=draw)  # in the place of the image encoder
        pipe.encode_image = lambda image, device: seen
    made: torch.Tensor = pipe(**given).frames
    return made


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    diffusers.utils.logging.set_verbosity_error()
    yield


@pytest.mark.parametrize("kind", ["t2v", "i2v", "vace", "5b", "experts"])
def test_frames_are_equal(kind: str) -> None:
    pipe = pipeline(kind)
    whole = frames(kind, pipe)
    said: list[str] = []
    models = [pipe.transformer, *([pipe.transformer_2] if kind == "experts" else [])]
    pieces = [Pieces(model, 64, said.append) for model in models]
    assert torch.equal(frames(kind, pipe), whole)
    assert not said
    for one in pieces:
        one.remove()


def first_block(model: Any) -> None:
    model.enable_cache(hooks.FirstBlockCacheConfig(threshold=0.2))


def mag(model: Any) -> None:
    ratios = torch.linspace(1.02, 0.98, 4)
    model.enable_cache(
        hooks.MagCacheConfig(num_inference_steps=4, mag_ratios=ratios, retention_ratio=0.25)
    )


def taylor_seer(model: Any) -> None:
    model.enable_cache(hooks.TaylorSeerCacheConfig(cache_interval=2, max_order=1))


def skipped_layer(model: Any) -> None:
    config = hooks.LayerSkipConfig(indices=[1], fqn="blocks", skip_attention=False)
    hooks.apply_layer_skip(model, config)


def lora(model: Any) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False))
    model.eval()


TOUCHES = {touch.__name__: touch for touch in (first_block, mag, taylor_seer, skipped_layer, lora)}


@pytest.mark.parametrize(
    ("kind", "touch"),
    some_of(
        product(["t2v", "i2v", "vace", "5b", "experts"], TOUCHES),
        [*zip(["t2v", "i2v", "vace", "5b", "experts"], TOUCHES, strict=True), ("t2v", "mag")],
    ),
)
def test_frames_with_caches_skips_and_loras_are_equal(kind: str, touch: str) -> None:
    made = []
    for tokens in (0, 64):
        pipe = pipeline(kind)
        models = [pipe.transformer, *([pipe.transformer_2] if kind == "experts" else [])]
        pieces = [Pieces(model, tokens, lambda sentence: None) for model in models if tokens]
        for model in models:
            TOUCHES[touch](model)
        made.append(frames(kind, pipe))
        for one in pieces:
            one.remove()
    assert torch.equal(*made)


def test_frames_of_a_swapped_pipeline_are_equal() -> None:
    pipe = pipeline("t2v")
    whole = frames("t2v", pipe)
    args = BlockSwapArgs(blocks="0-2", chunk_tokens=64)
    with ExitStack() as stack:
        swap = stack.enter_context(swap_blocks(pipe.transformer, args, device="cpu"))
        assert torch.equal(frames("t2v", pipe), whole)
        assert swap.plan.chunk_tokens == 64
    assert torch.equal(frames("t2v", pipe), whole)
