"""`BlockSwapArgs`: normalised and checked once, at the door."""

import dataclasses

import pytest

from blockswap.errors import ArgsError, SelectionError
from blockswap.selection import BlockSwapArgs


def test_nothing_asked_is_automatic():
    args = BlockSwapArgs()
    assert (args.blocks, args.blocks_to_swap, args.vace_blocks_to_swap) == (None, None, None)
    assert (args.vram_budget_bytes, args.ram_budget_bytes, args.copies_ahead) == (None, None, None)


@pytest.mark.parametrize("blocks", ["5, 0,2-3", [5, 2, 3, 0, 0], range(0, 6, 5), {5, 0}, (5, 0)])
def test_blocks_read_as_ascending_distinct_indices(blocks):
    expected = (0, 2, 3, 5) if len(blocks) > 2 else (0, 5)
    assert BlockSwapArgs(blocks=blocks).blocks == expected


def test_a_block_list_keeps_the_users_words():
    assert BlockSwapArgs(blocks="3-5, 0").block_list.text == "3-5,0"


@pytest.mark.parametrize("blocks", ["", " ,\n", [], (), None])
def test_an_empty_list_asks_for_nothing(blocks):
    args = BlockSwapArgs(blocks=blocks, blocks_to_swap=7)
    assert args.blocks is None
    assert args.block_list is None


def test_a_malformed_list_is_refused_in_the_agreed_words():
    with pytest.raises(SelectionError, match=r"^Invalid range: '3-1'"):
        BlockSwapArgs(blocks="3-1")


@pytest.mark.parametrize("blocks", [b"0-5", {0: 1}, 7, True])
def test_blocks_that_are_no_list_are_refused(blocks):
    with pytest.raises(ArgsError, match="is no block list: write a text such as '0,2,3-5'"):
        BlockSwapArgs(blocks=blocks)


def test_a_list_and_a_count_may_agree():
    assert BlockSwapArgs(blocks="0,2,2,3-5", blocks_to_swap=5).blocks == (0, 2, 3, 4, 5)


def test_a_list_and_a_count_that_disagree_are_told_with_both_numbers():
    with pytest.raises(ArgsError, match=r"blocks='0,2' names 2 blocks and blocks_to_swap=20"):
        BlockSwapArgs(blocks="0,2", blocks_to_swap=20)


COUNTS = ["blocks_to_swap", "prefetch_blocks", "vace_blocks_to_swap"]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [True, 1.0, "3", [3]])
def test_a_count_of_another_type_is_refused(name, value):
    with pytest.raises(ArgsError, match=f"^{name}=.* is no whole number"):
        BlockSwapArgs(**{name: value})


@pytest.mark.parametrize("name", COUNTS)
def test_a_negative_count_is_refused(name):
    with pytest.raises(ArgsError, match=f"^{name}=-1 is negative"):
        BlockSwapArgs(**{name: -1})


class Seven:
    """An integer of another library."""

    def __index__(self):
        return 7


@pytest.mark.parametrize("name", COUNTS)
def test_integers_of_other_libraries_become_plain_ones(name):
    value = getattr(BlockSwapArgs(**{name: Seven()}), name)
    assert value == 7
    assert type(value) is int


FLAGS = ["offload_txt_emb", "offload_img_emb", "use_non_blocking", "block_swap_debug"]


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", [1, 0, "True", None])
def test_a_flag_is_true_or_false(name, value):
    with pytest.raises(ArgsError, match=f"^{name}=.* is neither True nor False"):
        BlockSwapArgs(**{name: value})


@pytest.mark.parametrize("name", ["vram_budget", "ram_budget"])
def test_budgets_read_as_bytes(name):
    args = BlockSwapArgs(**{name: "8GiB"})
    assert getattr(args, name) == getattr(args, f"{name}_bytes") == 8 * 2**30


@pytest.mark.parametrize("name", ["vram_budget", "ram_budget"])
def test_an_empty_budget_is_none(name):
    assert getattr(BlockSwapArgs(**{name: "  "}), name) is None


@pytest.mark.parametrize("name", ["vram_budget", "ram_budget"])
def test_a_wrong_budget_is_told_by_its_name(name):
    with pytest.raises(ArgsError, match=f"^{name}='much' is no size"):
        BlockSwapArgs(**{name: "much"})


def test_without_non_blocking_copies_nothing_is_copied_ahead():
    assert BlockSwapArgs(use_non_blocking=False).copies_ahead == 0
    assert BlockSwapArgs(use_non_blocking=False, prefetch_blocks=2).copies_ahead == 0
    assert BlockSwapArgs(prefetch_blocks=2).copies_ahead == 2


def test_arguments_are_values():
    args = BlockSwapArgs(blocks="0-2")
    assert args == BlockSwapArgs(blocks=[2, 1, 0])
    assert hash(args) == hash(BlockSwapArgs(blocks=[2, 1, 0]))
    assert dataclasses.replace(args, vram_budget="1g").blocks == (0, 1, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        args.blocks = None


def test_arguments_are_given_by_name():
    with pytest.raises(TypeError):
        BlockSwapArgs("0-5")
