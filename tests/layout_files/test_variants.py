"""The published models and their names."""

from dataclasses import replace

import pytest
from checkpoint_samples import TINY

from blockswap.errors import ArgsError
from blockswap.layout.geometry import (
    VARIANTS,
    find_variant,
    name_variant,
    name_variants,
    parameter_count,
    tensor_names,
)

# Counted on the vendors' model classes.
COUNTS = {
    "wan2.1-t2v-1.3b": (825, 1_418_996_800),
    "wan2.1-t2v-14b": (1095, 14_288_491_584),
    "wan2.2-t2v-a14b": (1095, 14_288_491_584),
    "wan2.1-i2v-14b": (1303, 16_394_878_784),
    "wan2.1-flf2v-14b": (1304, 16_394_878_784 + 514 * 1280),
    "wan2.2-i2v-a14b": (1095, 14_288_901_184),
    "wan2.2-ti2v-5b": (825, 4_999_787_712),
    "wan2.1-vace-1.3b": (1264, 2_153_972_032),
    "wan2.1-vace-14b": (1331, 17_337_592_896),
}
PER_BLOCK = {
    "wan2.1-t2v-1.3b": (27, 46_440_704),
    "wan2.1-t2v-14b": (27, 351_394_304),
    "wan2.1-i2v-14b": (32, 403_838_464),
    "wan2.2-ti2v-5b": (27, 163_656_704),
}


def test_every_variant_is_counted() -> None:
    assert set(COUNTS) == set(VARIANTS)


@pytest.mark.parametrize("name", COUNTS)
def test_keys_and_parameters_are_the_published_ones(name: str) -> None:
    geometry = VARIANTS[name]
    assert (len(tensor_names(geometry)), parameter_count(geometry)) == COUNTS[name]


@pytest.mark.parametrize("name", PER_BLOCK)
def test_a_block_has_the_published_size(name: str) -> None:
    geometry = VARIANTS[name]
    one_less = replace(geometry, num_layers=geometry.num_layers - 1)
    tensors = len(tensor_names(geometry)) - len(tensor_names(one_less))
    assert (tensors, parameter_count(geometry) - parameter_count(one_less)) == PER_BLOCK[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_heads_of_128(name: str) -> None:
    assert VARIANTS[name].head_dim == 128


@pytest.mark.parametrize(("name", "blocks"), [("wan2.1-vace-1.3b", 15), ("wan2.1-vace-14b", 8)])
def test_vace_models_have_their_vace_blocks(name: str, blocks: int) -> None:
    assert VARIANTS[name].num_vace_blocks == blocks


@pytest.mark.parametrize("name", VARIANTS)
def test_a_geometry_leads_back_to_its_name_in_either_spelling(name: str) -> None:
    assert name in name_variants(VARIANTS[name])
    assert name in name_variants(replace(VARIANTS[name], naming="diffusers"))


def test_models_of_one_geometry_are_all_named() -> None:
    assert name_variant(VARIANTS["wan2.1-t2v-14b"]) == "wan2.1-t2v-14b or wan2.2-t2v-a14b"


def test_scales_do_not_hide_the_name() -> None:
    geometry = replace(VARIANTS["wan2.2-i2v-a14b"], extras=("scaled_fp8",), unused=("x",))
    assert name_variant(geometry) == "wan2.2-i2v-a14b"


def test_an_unpublished_geometry_has_no_name() -> None:
    assert name_variants(TINY) == ()
    assert name_variant(TINY) is None


@pytest.mark.parametrize("text", ["wan2.1-t2v-1.3b", " Wan2.1-T2V-1.3B ", "wan2.1_t2v_1.3b"])
def test_a_variant_is_found_however_it_is_written(text: str) -> None:
    assert find_variant(text) is VARIANTS["wan2.1-t2v-1.3b"]


def test_an_unknown_variant_gets_the_closest_and_the_list() -> None:
    with pytest.raises(ArgsError, match=r"'wan2.1-t2v-13b': did you mean 'wan2.1-t2v-1.3b', of"):
        find_variant("wan2.1-t2v-13b")
    with pytest.raises(ArgsError, match=r"Unknown variant: 'flux': use one of wan2.1-t2v-1.3b, "):
        find_variant("flux")
