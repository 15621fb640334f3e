"""diffusers itself agrees with our names and shapes, for every published model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from checkpoint_samples import TINY
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from blockswap.layout.geometry import (
    VARIANTS,
    WanGeometry,
    file_names,
    tensor_names,
    to_diffusers_key,
)


def on_meta(geometry: WanGeometry) -> torch.nn.Module:
    config: dict[str, Any] = {
        "patch_size": geometry.patch_size,
        "num_attention_heads": geometry.num_heads,
        "attention_head_dim": geometry.head_dim,
        "in_channels": geometry.in_channels,
        "out_channels": geometry.out_channels,
        "text_dim": geometry.text_dim,
        "freq_dim": geometry.freq_dim,
        "ffn_dim": geometry.ffn_dim,
        "num_layers": geometry.num_layers,
        "cross_attn_norm": geometry.cross_attn_norm,
        "image_dim": geometry.image_dim,
        "added_kv_proj_dim": geometry.dim if geometry.added_kv else None,
        "pos_embed_seq_len": geometry.pos_embed_seq_len,
    }
    with torch.device("meta"):
        if not geometry.vace_layers:
            return WanTransformer3DModel(**config)
        return WanVACETransformer3DModel(
            **config,
            vace_layers=list(geometry.vace_layers),
            vace_in_channels=geometry.vace_in_channels,
        )


GEOMETRIES = {
    **VARIANTS,
    "tiny": TINY,
    "tiny without norm3": replace(TINY, cross_attn_norm=False),
    "tiny image to video with vace": replace(
        TINY, image_dim=8, added_kv=True, vace_layers=(0, 1, 3), vace_in_channels=6
    ),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_names_and_shapes_are_those_of_the_model_class(name: str) -> None:
    geometry = replace(GEOMETRIES[name], naming="diffusers")
    model = on_meta(geometry).state_dict()
    assert file_names(geometry) == {key: tuple(value.shape) for key, value in model.items()}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_rename_is_the_one_of_the_converter(name: str) -> None:
    # The single-file converter of diffusers 0.42.1 forgets img_emb.emb_pos; the model class,
    # which the test above compares with, calls it pos_embed.
    keys = [key for key in tensor_names(GEOMETRIES[name]) if key != "img_emb.emb_pos"]
    marks: dict[str, Any] = {key: torch.tensor(i) for i, key in enumerate(keys)}
    converted = convert_wan_transformer_to_diffusers(dict(marks))
    assert converted == {to_diffusers_key(key): mark for key, mark in marks.items()}
