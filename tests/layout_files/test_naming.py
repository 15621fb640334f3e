"""The two spellings of a key, and the unit that a key belongs to."""

import pytest
from checkpoint_samples import TINY
from hypothesis import given
from hypothesis import strategies as st

from blockswap.layout.geometry import (
    VARIANTS,
    UnitKey,
    naming_of,
    tensor_names,
    to_diffusers_key,
    to_original_key,
    unit_of,
    units_in_order,
)


@pytest.mark.parametrize(
    ("key", "split"),
    [
        ("blocks.3.self_attn.q.weight", ("blocks.3", "block", 3, "self_attn.q.weight")),
        ("blocks.12.modulation", ("blocks.12", "block", 12, "modulation")),
        ("vace_blocks.0.after_proj.weight", ("vace_blocks.0", "vace", 0, "after_proj.weight")),
        ("text_embedding.0.weight", ("text_embedding", "text_embedder", 0, "0.weight")),
        ("img_emb.proj.0.weight", ("img_emb", "image_embedder", 0, "proj.0.weight")),
        (
            "condition_embedder.text_embedder.linear_1.bias",
            ("condition_embedder.text_embedder", "text_embedder", 0, "linear_1.bias"),
        ),
        (
            "condition_embedder.image_embedder.norm1.weight",
            ("condition_embedder.image_embedder", "image_embedder", 0, "norm1.weight"),
        ),
    ],
)
def test_a_key_splits_into_its_unit_and_the_rest(key: str, split: tuple[object, ...]) -> None:
    assert unit_of(key) == UnitKey(*split)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key",
    [
        "patch_embedding.weight",
        "head.modulation",
        "scale_shift_table",
        "proj_out.bias",
        "condition_embedder.time_proj.weight",
        "blocks",
        "blocks.3",
        "blocks.3.",
        "blocks.03.modulation",
        "blocks.-1.modulation",
        "blocks.1e3.modulation",
        "blocks.99999999999999999999.modulation",
        "blocks.٣.modulation",
        "my.blocks.3.modulation",
        "text_embedding",
        "text_embeddings.0.weight",
        "",
    ],
)
def test_other_keys_belong_to_no_unit(key: str) -> None:
    assert unit_of(key) is None


def test_a_unit_and_the_rest_join_to_the_key() -> None:
    for key in tensor_names(VARIANTS["wan2.1-vace-1.3b"]):
        if unit := unit_of(key):
            assert f"{unit.unit}.{unit.rest}" == key


def test_units_run_embedders_first_then_vace_then_blocks() -> None:
    keys = ["blocks.10.x", "blocks.2.x", "vace_blocks.1.x", "head.head.bias", "blocks.2.y"]
    keys += ["img_emb.proj.0.weight", "vace_blocks.0.x", "text_embedding.0.bias"]
    assert units_in_order(keys) == (
        "text_embedding",
        "img_emb",
        "vace_blocks.0",
        "vace_blocks.1",
        "blocks.2",
        "blocks.10",
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_spellings_lead_back_to_each_other(variant: str) -> None:
    for key in tensor_names(VARIANTS[variant]):
        renamed = to_diffusers_key(key)
        assert to_original_key(renamed) == key
        assert to_diffusers_key(renamed) == renamed
        assert to_original_key(key) == key


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_spellings_name_the_same_units(variant: str) -> None:
    for key in tensor_names(VARIANTS[variant]):
        original, diffusers = unit_of(key), unit_of(to_diffusers_key(key))
        assert (original is None) == (diffusers is None)
        if original and diffusers:
            assert (original.kind, original.index) == (diffusers.kind, diffusers.index)


def test_what_hangs_on_a_layer_moves_with_it() -> None:
    key = "blocks.0.self_attn.o.scale_weight"
    assert to_diffusers_key(key) == "blocks.0.attn1.to_out.0.scale_weight"
    assert to_original_key(to_diffusers_key(key)) == key


@given(st.text(max_size=30))
def test_an_unknown_key_keeps_its_name(key: str) -> None:
    key = f"unknown.{key}"
    assert to_diffusers_key(key) == key
    assert to_original_key(key) == key


def test_the_spelling_of_a_model_is_seen() -> None:
    names = list(tensor_names(TINY))
    assert naming_of(names) == "original"
    assert naming_of(map(to_diffusers_key, names)) == "diffusers"


def test_mixed_or_silent_keys_have_no_spelling() -> None:
    assert naming_of(["blocks.0.modulation", "blocks.0.scale_shift_table"]) is None
    assert naming_of(["patch_embedding.weight"]) is None
