"""Dictionaries of other packs: read as they mean them, written as they read them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockswap.errors import ArgsError
from blockswap.selection import BlockSwapArgs

NEIGHBOUR = {
    "blocks_to_swap": 20,
    "offload_img_emb": False,
    "offload_txt_emb": False,
    "use_non_blocking": False,
    "vace_blocks_to_swap": 0,
    "prefetch_blocks": 0,
    "block_swap_debug": False,
}


def test_the_neighbours_dictionary_is_taken_as_it_is():
    args = BlockSwapArgs.from_mapping(NEIGHBOUR)
    assert args == BlockSwapArgs(blocks_to_swap=20, vace_blocks_to_swap=0)


@pytest.mark.parametrize("key", NEIGHBOUR)
def test_any_key_may_be_missing_or_none(key):
    without = {name: value for name, value in NEIGHBOUR.items() if name != key}
    expected = BlockSwapArgs.from_mapping(without)
    assert BlockSwapArgs.from_mapping({**NEIGHBOUR, key: None}) == expected


def test_an_empty_dictionary_is_automatic():
    assert BlockSwapArgs.from_mapping({}) == BlockSwapArgs()


def test_its_defaults_do_not_stop_prefetch():
    assert BlockSwapArgs.from_mapping(NEIGHBOUR).copies_ahead is None
    assert BlockSwapArgs.from_mapping({**NEIGHBOUR, "prefetch_blocks": 3}).copies_ahead == 3


def test_a_list_wins_over_the_count_that_is_always_there():
    args = BlockSwapArgs.from_mapping({**NEIGHBOUR, "blocks": "0,2"})
    assert (args.blocks, args.blocks_to_swap) == ((0, 2), None)


@pytest.mark.parametrize("empty", ["", " , ", [], None])
def test_an_empty_list_leaves_the_count(empty):
    args = BlockSwapArgs.from_mapping({**NEIGHBOUR, "blocks": empty})
    assert (args.blocks, args.blocks_to_swap) == (None, 20)


@pytest.mark.parametrize("listed", [[3, 1], (1, 3)])
def test_a_list_wired_into_the_count_is_a_list(listed):
    for blocks in ({}, {"blocks": ""}):
        args = BlockSwapArgs.from_mapping({**NEIGHBOUR, "blocks_to_swap": listed, **blocks})
        assert (args.blocks, args.blocks_to_swap) == ((1, 3), None)


def test_a_list_under_its_own_key_wins_over_one_under_the_count():
    mapping = {"blocks_to_swap": [9], "blocks": (index for index in (4, 5))}
    assert BlockSwapArgs.from_mapping(mapping).blocks == (4, 5)


def test_an_unknown_key_is_told_with_the_closest_known_one():
    with pytest.raises(ArgsError, match="'block_to_swap' is no block swap argument") as caught:
        BlockSwapArgs.from_mapping({"block_to_swap": 3})
    assert "the closest is 'blocks_to_swap'" in str(caught.value)
    assert "vram_budget" in str(caught.value)


def test_an_unknown_key_of_any_kind_is_one_sentence():
    with pytest.raises(ArgsError, match=r"^7 is no block swap argument"):
        BlockSwapArgs.from_mapping({7: 3})


@pytest.mark.parametrize("value", [None, [("blocks", "0")], "0-5"])
def test_what_is_no_dictionary_is_refused(value):
    with pytest.raises(ArgsError, match="give a dictionary"):
        BlockSwapArgs.from_mapping(value)


def test_wrong_values_are_refused_as_in_the_class():
    with pytest.raises(ArgsError, match="blocks_to_swap='20' is no whole number"):
        BlockSwapArgs.from_mapping({"blocks_to_swap": "20"})


def test_the_neighbour_is_handed_every_key_in_its_own_type():
    mapping = BlockSwapArgs(blocks="0,2,3-5", offload_txt_emb=True).to_mapping()
    handed = {key: mapping[key] for key in NEIGHBOUR}
    assert handed == {
        **NEIGHBOUR,
        "blocks_to_swap": 5,
        "offload_txt_emb": True,
        "use_non_blocking": True,
    }


def test_automatic_becomes_the_neighbours_default_count():
    assert BlockSwapArgs(vram_budget="8g").to_mapping()["blocks_to_swap"] == 20
    assert BlockSwapArgs(blocks_to_swap=0).to_mapping()["blocks_to_swap"] == 0


def own_args():
    count = st.none() | st.integers(0, 60)
    return st.one_of(
        st.fixed_dictionaries({"blocks": st.lists(st.integers(0, 40), min_size=1)}),
        st.fixed_dictionaries({"blocks_to_swap": count}),
    ).flatmap(
        lambda which: st.builds(
            BlockSwapArgs,
            **{name: st.just(value) for name, value in which.items()},
            offload_txt_emb=st.booleans(),
            offload_img_emb=st.booleans(),
            prefetch_blocks=count,
            vace_blocks_to_swap=count,
            use_non_blocking=st.booleans(),
            block_swap_debug=st.booleans(),
            vram_budget=count,
            ram_budget=count,
        )
    )


@settings(deadline=None)
@given(own_args())
def test_our_arguments_come_back_as_they_were_handed_out(args):
    mapping = json.loads(json.dumps(args.to_mapping()))
    assert BlockSwapArgs.from_mapping(mapping) == args


def test_the_words_of_a_list_come_back():
    mapping = BlockSwapArgs(blocks="38-41").to_mapping()
    assert BlockSwapArgs.from_mapping(mapping).block_list.text == "38-41"


def test_changes_made_on_the_way_are_kept():
    mapping = BlockSwapArgs(blocks_to_swap=10, prefetch_blocks=2, vram_budget="8g").to_mapping()
    changed = mapping | {"blocks_to_swap": 12, "prefetch_blocks": 0, "ram_budget": "1g"}
    expected = BlockSwapArgs(blocks_to_swap=12, vram_budget="8g", ram_budget="1g")
    assert BlockSwapArgs.from_mapping(changed) == expected


def test_an_unknown_key_inside_is_refused_too():
    with pytest.raises(ArgsError, match="'count' is no block swap argument"):
        BlockSwapArgs.from_mapping({"blockswap": {"count": 3}})
