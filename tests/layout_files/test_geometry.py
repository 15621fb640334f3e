"""Reading a geometry off the names and shapes of a file."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_samples import STATED, TINY, save_geometry, save_shapes

from blockswap.errors import GeometryError
from blockswap.layout.checkpoint import Checkpoint, open_checkpoint
from blockswap.layout.geometry import WanGeometry, file_names, infer_geometry, tensor_names
from blockswap.layout.geometry import infer as infer_module

Shapes = dict[str, tuple[int, ...]]

GEOMETRIES = {
    "text to video": TINY,
    "image to video": replace(TINY, in_channels=6, image_dim=8, added_kv=True),
    "first and last frame": replace(TINY, image_dim=8, added_kv=True, pos_embed_seq_len=10),
    "vace": replace(TINY, vace_layers=(0, 2), vace_in_channels=6),
    "one block": replace(TINY, num_layers=1),
    "other patch": replace(TINY, patch_size=(1, 4, 1), out_channels=3),
    "no norm3": replace(TINY, cross_attn_norm=False),
    "no norm of q and k": replace(TINY, qk_norm=False, image_dim=8, added_kv=True),
    "no norm anywhere": replace(TINY, qk_norm=False, cross_attn_norm=False),
}


def opened(folder: Path, shapes: Mapping[str, tuple[int, ...]], **metadata: str) -> Checkpoint:
    return open_checkpoint(save_shapes(folder / "f.safetensors", shapes, {**STATED, **metadata}))


def refused(checkpoint: Checkpoint, words: str) -> None:
    with pytest.raises(GeometryError, match=re.escape(words)) as caught:
        infer_geometry(checkpoint)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def changed(change: Callable[[Shapes], object], geometry: WanGeometry = TINY) -> Shapes:
    shapes = file_names(geometry)
    change(shapes)
    return shapes


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_geometry_is_read_back_from_its_file(tmp_path: Path, name: str, naming: str) -> None:
    geometry = replace(GEOMETRIES[name], naming=naming)  # type: ignore[arg-type]
    checkpoint = open_checkpoint(save_geometry(tmp_path / "f.safetensors", geometry))
    assert infer_geometry(checkpoint) == geometry


def test_heads_of_128_need_not_be_stated(tmp_path: Path) -> None:
    geometry = replace(TINY, dim=256)
    path = save_shapes(tmp_path / "f.safetensors", tensor_names(geometry), metadata=None)
    assert infer_geometry(open_checkpoint(path)).num_heads == 2
    assert infer_geometry(open_checkpoint(path)).head_dim == 128


def test_heads_of_another_size_must_be_stated(tmp_path: Path) -> None:
    path = save_shapes(tmp_path / "f.safetensors", tensor_names(TINY), metadata=None)
    refused(open_checkpoint(path), "32 wide, no multiple of 128, and does not say how many heads")


@pytest.mark.parametrize("heads", ["3", "32", "64"])
def test_stated_heads_must_split_the_width_evenly(tmp_path: Path, heads: str) -> None:
    words = f"states {heads} heads, but its width 32 does not split"
    refused(opened(tmp_path, tensor_names(TINY), **{"wan.num_heads": heads}), words)


@pytest.mark.parametrize("key", tensor_names(GEOMETRIES["image to video"]))
def test_any_missing_tensor_is_named(tmp_path: Path, key: str) -> None:
    shapes = changed(lambda names: names.pop(key), GEOMETRIES["image to video"])
    with pytest.raises(GeometryError) as caught:
        infer_geometry(opened(tmp_path, shapes))
    message = str(caught.value)
    # Without a tensor that tells which family it is, the family's other tensors are too many.
    telling = ("norm3.weight", "norm_q.weight", "k_img.weight", "img_emb.proj.0.weight")
    assert repr(key) in message or ("too many" in message and key.endswith(telling))


def test_a_missing_tensor_is_named_as_the_file_would(tmp_path: Path) -> None:
    geometry = replace(TINY, naming="diffusers")
    shapes = changed(lambda names: names.pop("blocks.2.attn1.to_q.bias"), geometry)
    refused(opened(tmp_path, shapes), "lacks tensor 'blocks.2.attn1.to_q.bias'")


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    def strip(names: Shapes) -> None:
        for key in [key for key in names if key.endswith("ffn.2.bias")]:
            del names[key]

    refused(opened(tmp_path, changed(strip)), "lacks 4 tensors ('blocks.0.ffn.2.bias', ")


def test_a_tensor_too_many_is_named(tmp_path: Path) -> None:
    shapes = changed(lambda names: names.update({"blocks.1.gate.weight": (3,)}))
    refused(opened(tmp_path, shapes), "holds tensor 'blocks.1.gate.weight' too many")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("blocks.3.ffn.0.weight", (48, 33)),
        ("blocks.3.ffn.0.bias", (32,)),
        ("blocks.1.modulation", (6, 32)),
        ("blocks.2.self_attn.norm_q.weight", (16,)),
        ("time_projection.1.weight", (192, 16)),
        ("head.modulation", (1, 2, 31)),
    ],
)
def test_a_wrong_shape_is_named_with_both_shapes(
    tmp_path: Path, key: str, shape: tuple[int, ...]
) -> None:
    shapes = changed(lambda names: names.update({key: shape}))
    checkpoint = opened(tmp_path, shapes)
    refused(checkpoint, f"'{key}' is {list(shape)}")
    refused(checkpoint, f"has {list(tensor_names(TINY)[key])} there")


def test_a_packed_weight_is_recognised_as_packed(tmp_path: Path) -> None:
    shapes = changed(lambda names: names.update({"patch_embedding.weight": (512, 1)}))
    refused(opened(tmp_path, shapes), "has 5 axes there: the file is packed by a quantiser")


def test_an_empty_axis_is_refused(tmp_path: Path) -> None:
    shapes = changed(lambda names: names.update({"text_embedding.0.weight": (32, 0)}))
    refused(opened(tmp_path, shapes), "'text_embedding.0.weight' is [32, 0]")


def test_a_head_that_fits_no_patch_is_refused(tmp_path: Path) -> None:
    shapes = changed(lambda names: names.update({"head.head.weight": (15, 32)}))
    refused(opened(tmp_path, shapes), "has 15 rows, no multiple of the 4 values of a patch")


def test_a_gap_in_the_blocks_is_named(tmp_path: Path) -> None:
    def drop(names: Shapes) -> None:
        for key in [key for key in names if key.startswith("blocks.1.")]:
            del names[key]

    refused(opened(tmp_path, changed(drop)), "has 3 blocks up to blocks.3, but blocks.1 is missing")


def test_no_blocks_at_all_is_refused(tmp_path: Path) -> None:
    shapes = {key: shape for key, shape in tensor_names(TINY).items() if "blocks" not in key}
    refused(opened(tmp_path, shapes), "has no transformer blocks among its")


def test_absurdly_many_blocks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer_module, "MAX_BLOCKS", 3)
    refused(opened(tmp_path, tensor_names(TINY)), "has 4 blocks, more than 3")


def test_mixed_spellings_are_refused(tmp_path: Path) -> None:
    shapes = changed(lambda names: names.update({"blocks.0.scale_shift_table": (1, 6, 32)}))
    refused(opened(tmp_path, shapes), "or mixes both")


def test_half_a_checkpoint_is_told_from_another_model(tmp_path: Path) -> None:
    shapes = changed(lambda names: names.pop("patch_embedding.weight"))
    refused(opened(tmp_path, shapes), "lacks tensor 'patch_embedding.weight'")


def test_vace_blocks_that_are_not_evenly_spaced_must_be_stated(tmp_path: Path) -> None:
    geometry = replace(TINY, vace_layers=(0, 1, 3), vace_in_channels=6)
    refused(opened(tmp_path, tensor_names(geometry)), "has 3 VACE blocks for 4 blocks")
    stated = opened(tmp_path, tensor_names(geometry), **{"wan.vace_layers": "0,1,3"})
    assert infer_geometry(stated) == geometry


@pytest.mark.parametrize("layers", ["0", "0,1,2", "1,2", "2,0", "0,0", "0,4"])
def test_stated_vace_layers_must_fit_the_blocks(tmp_path: Path, layers: str) -> None:
    shapes = tensor_names(GEOMETRIES["vace"])
    words = "but has 2 VACE blocks for blocks 0-3, the first at 0"
    refused(opened(tmp_path, shapes, **{"wan.vace_layers": layers}), words)


def test_scales_of_an_fp8_file_are_reported(tmp_path: Path) -> None:
    added = {
        "scaled_fp8": (2,),
        "blocks.0.self_attn.q.scale_weight": (1,),
        "blocks.0.self_attn.q.scale_input": (1,),
        "blocks.1.ffn.0.weight_scale": (),
        "blocks.1.ffn.0.comfy_quant": (30,),
    }
    shapes = changed(lambda names: names.update(added))
    geometry = infer_geometry(opened(tmp_path, shapes))
    assert set(geometry.extras) == set(added)
    assert geometry == TINY


def test_scales_are_reported_as_a_diffusers_file_spells_them(tmp_path: Path) -> None:
    geometry = replace(TINY, naming="diffusers")
    scale = "blocks.0.attn1.to_q.scale_weight"
    shapes = changed(lambda names: names.update({scale: (1,)}), geometry)
    assert infer_geometry(opened(tmp_path, shapes)).extras == (scale,)


def test_a_scale_of_nothing_is_too_many(tmp_path: Path) -> None:
    shapes = changed(lambda names: names.update({"blocks.0.nothing.scale_weight": (1,)}))
    refused(opened(tmp_path, shapes), "'blocks.0.nothing.scale_weight' too many")


def test_what_no_forward_reads_is_reported(tmp_path: Path) -> None:
    geometry = replace(GEOMETRIES["image to video"], naming="diffusers")
    name = "blocks.0.attn2.norm_added_q.weight"
    shapes = changed(lambda names: names.update({name: (32,)}), geometry)
    inferred = infer_geometry(opened(tmp_path, shapes))
    assert inferred.unused == (name,)
    assert inferred == geometry
