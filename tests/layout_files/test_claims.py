"""Every figure that a config.json or the metadata states is compared with what the tensors show."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_samples import STATED, TINY, save_shapes

from blockswap.errors import GeometryError
from blockswap.layout.checkpoint import open_checkpoint
from blockswap.layout.geometry import VARIANTS, WanGeometry, file_names, infer_geometry
from blockswap.layout.geometry.restated import all_statements

IMAGE = replace(TINY, in_channels=6, image_dim=8, added_kv=True)
FIRST_LAST = replace(IMAGE, pos_embed_seq_len=10)
VACE = replace(TINY, vace_layers=(0, 2), vace_in_channels=6)
KINDS = {"t2v": TINY, "i2v": IMAGE, "flf2v": FIRST_LAST, "vace": VACE}


def diffusers_config(geometry: WanGeometry) -> dict[str, Any]:
    """As diffusers' `save_pretrained` writes it."""
    config: dict[str, Any] = {
        "_class_name": "WanTransformer3DModel",
        "_diffusers_version": "0.36.0",
        "added_kv_proj_dim": geometry.dim if geometry.added_kv else None,
        "attention_head_dim": geometry.head_dim,
        "cross_attn_norm": True,
        "eps": 1e-06,
        "ffn_dim": geometry.ffn_dim,
        "freq_dim": geometry.freq_dim,
        "image_dim": geometry.image_dim,
        "in_channels": geometry.in_channels,
        "num_attention_heads": geometry.num_heads,
        "num_layers": geometry.num_layers,
        "out_channels": geometry.out_channels,
        "patch_size": list(geometry.patch_size),
        "pos_embed_seq_len": geometry.pos_embed_seq_len,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": geometry.text_dim,
    }
    if geometry.vace_layers:
        config["_class_name"] = "WanVACETransformer3DModel"
        config["vace_in_channels"] = geometry.vace_in_channels
        config["vace_layers"] = list(geometry.vace_layers)
    return config


def vendor_config(kind: str, geometry: WanGeometry) -> dict[str, Any]:
    """As the vendors' repositories have it."""
    config: dict[str, Any] = {
        "_class_name": "VaceWanModel" if geometry.vace_layers else "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": geometry.dim,
        "eps": 1e-06,
        "ffn_dim": geometry.ffn_dim,
        "freq_dim": geometry.freq_dim,
        "in_dim": geometry.in_channels,
        "model_type": kind,
        "num_heads": geometry.num_heads,
        "num_layers": geometry.num_layers,
        "out_dim": geometry.out_channels,
        "text_len": 512,
    }
    if geometry.vace_layers:
        config["vace_in_dim"] = geometry.vace_in_channels
        config["vace_layers"] = list(geometry.vace_layers)
    return config


def inferred(
    folder: Path,
    geometry: WanGeometry,
    *,
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    without: Callable[[str], bool] = lambda name: False,
) -> WanGeometry:
    shapes = {name: s for name, s in file_names(geometry).items() if not without(name)}
    save_shapes(folder / "diffusion_pytorch_model.safetensors", shapes, metadata)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return infer_geometry(open_checkpoint(folder))


def refused(words: str, *args: Any, **options: Any) -> None:
    with pytest.raises(GeometryError, match=words) as caught:
        inferred(*args, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("kind", KINDS)
def test_whole_models_open_with_the_configs_that_they_come_with(
    tmp_path: Path, kind: str, naming: str
) -> None:
    geometry = replace(KINDS[kind], naming=naming)  # type: ignore[arg-type]
    for config in (diffusers_config(geometry), vendor_config(kind, geometry)):
        assert inferred(tmp_path, geometry, config=config) == geometry


@pytest.mark.parametrize("name", VARIANTS)
def test_published_models_open_with_nothing_said(name: str, tmp_path: Path) -> None:
    assert not all_statements(VARIANTS[name]).keys() - {"wan.num_heads", "wan.vace_layers"}


# Another value for every figure of a diffusers config that the tensors show.
LIES: dict[str, list[object]] = {
    "ffn_dim": [47, "48", True],
    "num_layers": [3, 5],
    "in_channels": [36],
    "out_channels": [16],
    "text_dim": [99],
    "freq_dim": [4],
    "patch_size": [[1, 4, 4], [1, 2], 2],
    "image_dim": [1280, None, "8"],
    "added_kv_proj_dim": [5120, None],
    "pos_embed_seq_len": [514, None],
    "cross_attn_norm": [False, None, "yes"],
    "qk_norm": [False, "layer_norm"],
    "attention_head_dim": [64, 3, 0, -2, "16"],
    "num_attention_heads": [3, 4],
    "vace_in_channels": [96],
    "vace_layers": [[0, 1, 2], [0], [1, 2], [2, 0], []],
    "_class_name": ["SkyReelsV2Transformer3DModel"],
    "model_type": ["animate", "s2v", 7],
    "rope_max_seq_len": [0, -1, 2**40, "1024"],
}
SILENT = {("cross_attn_norm", "None")}  # null says nothing here


@pytest.mark.parametrize(
    ("kind", "name", "lie"),
    [
        (kind, name, lie)
        for kind, geometry in KINDS.items()
        for name, lies in LIES.items()
        for lie in lies
        if (name, str(lie)) not in SILENT
        # A lie elsewhere is the truth of this kind.
        and not (lie is None and diffusers_config(geometry)[name] is None)
        and not (lie == [] and not geometry.vace_layers)
    ],
)
def test_every_stated_figure_is_compared(tmp_path: Path, kind: str, name: str, lie: object) -> None:
    geometry = KINDS[kind]
    words = rf"{name}|{' '.join(name.split('_')[:1])}|heads|VACE|class|is a "
    refused(words, tmp_path, geometry, config={**diffusers_config(geometry), name: lie})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("wan.ffn_dim", "47"),
        ("wan.num_layers", "5"),
        ("wan.num_layers", "all"),
        ("wan.image_dim", "1280"),
        ("wan.cross_attn_norm", "false"),
        ("wan.qk_norm", "false"),
        ("wan.patch_size", "1,4,4"),
        ("wan.vace_layers", "0,2"),
        ("wan.attention_head_dim", "64"),
        ("wan.num_attention_heads", "4"),
        ("wan.eps", "2"),
        ("wan.eps", "tiny"),
        ("wan.rope_max_seq_len", "0"),
    ],
)
def test_metadata_is_compared_as_a_config_is(tmp_path: Path, key: str, text: str) -> None:
    refused(re.escape(key.removeprefix("wan.")[:3]) + r"|heads|VACE", tmp_path, TINY,
            metadata={**STATED, key: text})  # fmt: skip


def test_both_sides_of_a_contradiction_are_named(tmp_path: Path) -> None:
    refused(
        r"config.json says text_dim = 99, the tensors have 24",
        tmp_path, TINY, config={**diffusers_config(TINY), "text_dim": 99},
    )  # fmt: skip
    refused(
        r"states 2 heads of 64, but its width is 32",
        tmp_path, TINY, config={**diffusers_config(TINY), "attention_head_dim": 64},
    )  # fmt: skip
    refused(
        r"states num_heads = 4 and num_attention_heads = 2",
        tmp_path, TINY, config={**diffusers_config(TINY), "num_heads": 4},
    )  # fmt: skip


def test_what_shapes_do_not_show_is_used(tmp_path: Path) -> None:
    config = {"attention_head_dim": 8, "eps": 1e-3, "rope_max_seq_len": 2048}
    said = inferred(tmp_path, TINY, config=config)
    assert (said.num_heads, said.eps, said.rope_max_seq_len) == (4, 1e-3, 2048)
    metadata = {"wan.attention_head_dim": "8", "wan.eps": "0.001", "wan.rope_max_seq_len": "2048"}
    (tmp_path / "config.json").unlink()
    assert inferred(tmp_path, TINY, metadata=metadata) == said


@pytest.mark.parametrize(
    "said",
    [
        {"_class_name": "WanVACETransformer3DModel"},
        {"_class_name": "VaceWanModel"},
        {"model_type": "vace"},
        {"vace_layers": [0, 2]},
        {"vace_in_channels": 6},
        {"vace_in_dim": 6},
    ],
    ids=str,
)
def test_vace_parts_that_are_stated_must_be_there(tmp_path: Path, said: dict[str, Any]) -> None:
    refused("VACE|vace", tmp_path, VACE, config={"num_heads": 2, **said},
            without=lambda name: name.startswith("vace_"))  # fmt: skip


@pytest.mark.parametrize("name", ["WanTransformer3DModel", "WanModel"])
def test_vace_parts_that_a_class_has_not_are_refused(tmp_path: Path, name: str) -> None:
    refused("2 VACE blocks", tmp_path, VACE, config={"num_heads": 2, "_class_name": name})


# (geometry, which tensors are gone): a part of a model is whole or a missing tensor is named.
PARTS = {
    "embedder": (IMAGE, lambda name: name.startswith("img_emb.")),
    "attention": (IMAGE, lambda name: "_img." in name),
    "keys": (IMAGE, lambda name: ".k_img." in name),
    "embedder of first and last": (FIRST_LAST, lambda name: name.startswith("img_emb.proj")),
    "norm3 of one block": (TINY, lambda name: name.startswith("blocks.0.norm3")),
    "norm3 weights": (TINY, lambda name: name.endswith("norm3.weight")),
    "norms of queries": (TINY, lambda name: ".norm_q." in name),
    "norms of self attention": (TINY, lambda name: ".self_attn.norm_" in name),
    "vace patches": (VACE, lambda name: name.startswith("vace_patch_embedding")),
    "vace blocks": (VACE, lambda name: name.startswith("vace_blocks")),
    "first vace block": (VACE, lambda name: name.startswith("vace_blocks.0.")),
}


@pytest.mark.parametrize("naming", ["original", "diffusers"])
@pytest.mark.parametrize("part", PARTS)
def test_half_a_part_is_a_missing_tensor(tmp_path: Path, part: str, naming: str) -> None:
    from blockswap.layout.geometry import to_original_key

    geometry, gone = PARTS[part]
    spelt = replace(geometry, naming=naming)  # type: ignore[arg-type]
    refused("lacks|no VACE blocks|is missing", tmp_path, spelt, metadata=STATED,
            without=lambda name: gone(to_original_key(name)))  # fmt: skip


@pytest.mark.parametrize(
    ("config", "gone"),
    [
        ({"image_dim": 8, "added_kv_proj_dim": None}, "_img."),
        ({"image_dim": None, "added_kv_proj_dim": 32}, "img_emb."),
    ],
    ids=str,
)
def test_half_the_image_parts_may_be_meant_so(
    tmp_path: Path, config: dict[str, Any], gone: str
) -> None:
    found = inferred(tmp_path, IMAGE, config={**diffusers_config(IMAGE), **config},
                     without=lambda name: gone in name)  # fmt: skip
    assert (found.image_dim is None, found.added_kv) == (gone == "img_emb.", gone == "img_emb.")


@pytest.mark.parametrize("field", ["cross_attn_norm", "qk_norm"])
@pytest.mark.parametrize("how", ["width", "class"])
def test_norms_that_are_missing_everywhere_must_be_stated(
    tmp_path: Path, field: str, how: str
) -> None:
    # Thin layers, but as wide as a published model.
    wide = WanGeometry(dim=1536, ffn_dim=2, num_layers=1, num_heads=12, text_dim=2, freq_dim=2)
    geometry = replace(TINY if how == "class" else wide, **{field: False})  # type: ignore[arg-type]
    config: dict[str, Any] = {"num_heads": geometry.num_heads, "num_layers": geometry.num_layers}
    if how == "class":
        config["_class_name"] = "WanModel"
    refused(f"{field} = false", tmp_path, geometry, config=config)
    assert inferred(tmp_path, geometry, config={**config, field: False}) == geometry
    (tmp_path / "config.json").unlink()
    assert inferred(tmp_path, geometry, metadata=all_statements(geometry)) == geometry


def test_vace_blocks_of_published_widths_are_counted(tmp_path: Path) -> None:
    from blockswap.layout.geometry.claims import check_vace_count

    checkpoint = open_checkpoint(save_shapes(tmp_path / "f.safetensors", {"a": (1,)}))
    for name, dim in (("wan2.1-vace-1.3b", 1536), ("wan2.1-vace-14b", 5120)):
        known = VARIANTS[name].num_vace_blocks
        check_vace_count(checkpoint, dim, known)
        with pytest.raises(GeometryError, match=rf"{known}: give .* wan.vace_layers"):
            check_vace_count(checkpoint, dim, known - 3)
    check_vace_count(checkpoint, 256, 3)
