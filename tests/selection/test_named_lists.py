"""Block lists that name the lists of a model: `double:0-5,single:3`."""

import pytest

from blockswap import BlockSwapArgs
from blockswap.errors import ArgsError, SelectionError
from blockswap.layout.values import ModelLayout, UnitLayout
from blockswap.selection import select


def layout() -> ModelLayout:
    """Eight double and, from 8 on, sixteen single blocks of which place 3 is no block."""
    places = [("net.double", i) for i in range(8)] + [("single", i) for i in range(17) if i != 3]
    units = [
        UnitLayout(f"{name}.{place}", "block", index, ())
        for index, (name, place) in enumerate(places)
    ]
    return ModelLayout("Model", tuple(units), ())


def chosen(blocks: str) -> tuple[str, ...]:
    return select(BlockSwapArgs(blocks=blocks), layout()).candidates


def test_numbers_count_through_the_lists_and_say_so() -> None:
    assert chosen("6-8") == ("net.double.6", "net.double.7", "single.0")
    said = select(BlockSwapArgs(blocks="6-8"), layout()).sentences
    assert "(net.double 0-7, single 8-23)" in said[1]


def test_a_named_list_counts_as_its_members_are_numbered_in_the_model() -> None:
    assert chosen("single:2, single:4-5\nnet.double : 1") == (
        "net.double.1",
        "single.2",
        "single.4",
        "single.5",
    )


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ("single:2-4", "Invalid range: 'single:2-4': single has blocks 0-2, 4-16"),
        ("double:1", "Invalid range: 'double:1': the model has the lists net.double (0-7), single"),
        ("single:3,4", "Invalid range: '4': other parts name their list"),
        ("single:5-4", "Invalid range: '5-4': it runs backwards, write 4-5"),
        ("single:a", "Invalid integer: 'a'"),
        (":3", "Invalid range: ':3': write a list and its blocks"),
        ("24", "Invalid range: '24': the model has blocks 0-23"),
    ],
)
def test_mistakes_are_told_in_the_words_of_the_list(blocks: str, words: str) -> None:
    with pytest.raises(SelectionError) as refused:
        chosen(blocks)
    assert words in str(refused.value)


def test_named_blocks_keep_their_text_and_count_and_travel_in_a_dictionary() -> None:
    args = BlockSwapArgs(blocks="single:0-1,single:1-2", block_lists=["single"])
    assert args.blocks == "single:0-1,single:1-2"
    assert args.to_mapping()["blocks_to_swap"] == 3
    assert BlockSwapArgs.from_mapping(args.to_mapping()) == args
    with pytest.raises(ArgsError, match="names 3 blocks and blocks_to_swap=2"):
        BlockSwapArgs(blocks="single:0-2", blocks_to_swap=2)


@pytest.mark.parametrize("lists", [3, ("a", 3), ("",), [None]])
def test_block_lists_that_are_no_paths_are_refused(lists: object) -> None:
    with pytest.raises(ArgsError, match="block_lists="):
        BlockSwapArgs(block_lists=lists)  # type: ignore[arg-type]
