"""From the wish and the model to the candidates."""

import pytest

from blockswap.errors import ModelError, SelectionError
from blockswap.layout.values import ModelLayout, UnitLayout
from blockswap.selection import BlockSwapArgs, select


def layout(blocks=8, vace=0, embedders=("text_embedder", "image_embedder")):
    """A model whose VACE blocks run behind the blocks of the same number."""
    units = [UnitLayout(kind, kind, 0, ()) for kind in embedders]
    for index in range(blocks):
        units.append(UnitLayout(f"blocks.{index}", "block", index, ()))
        if index < vace:
            units.append(UnitLayout(f"vace_blocks.{index}", "vace", index, ()))
    return ModelLayout("toy", tuple(units), ())


def blocks(*indices):
    return tuple(f"blocks.{index}" for index in indices)


def test_nothing_asked_offers_all_blocks_and_vace_blocks_and_says_so():
    selection = select(BlockSwapArgs(), layout(blocks=2, vace=1))
    assert selection.candidates == ("blocks.0", "vace_blocks.0", "blocks.1")
    assert not selection.exact
    assert selection.sentences == (
        "neither blocks nor a count was asked: any block may be streamed",
    )


def test_a_list_means_exactly_those_blocks():
    selection = select(BlockSwapArgs(blocks="6, 0-1"), layout())
    assert selection.candidates == blocks(0, 1, 6)
    assert selection.exact
    assert selection.sentences == ("blocks='6,0-1' names 3 of 8 blocks",)


def test_a_list_beyond_the_model_quotes_the_users_part():
    with pytest.raises(SelectionError, match=r"^Invalid range: '6-9': the model has blocks 0-7$"):
        select(BlockSwapArgs(blocks="0,6-9"), layout())


def test_a_listed_number_beyond_the_model_is_quoted():
    with pytest.raises(SelectionError, match=r"^Invalid range: '8': the model has blocks 0-7$"):
        select(BlockSwapArgs(blocks=[8]), layout())


def test_a_count_is_spread_evenly_and_exact():
    selection = select(BlockSwapArgs(blocks_to_swap=4), layout())
    assert selection.candidates == blocks(1, 3, 5, 7)
    assert selection.exact
    assert selection.sentences == ("blocks_to_swap=4 was asked: 4 of 8 blocks, evenly spread",)


def test_a_count_beyond_the_model_is_clamped_and_said():
    selection = select(BlockSwapArgs(blocks_to_swap=75), layout(blocks=40))
    assert len(selection.candidates) == 40
    assert selection.sentences == (
        "blocks_to_swap=75 was asked, the model has 40 blocks: all 40 are streamed",
    )


def test_a_count_of_zero_streams_nothing():
    selection = select(BlockSwapArgs(blocks_to_swap=0), layout())
    assert selection.candidates == ()
    assert selection.exact


@pytest.mark.parametrize("wish", [{"blocks": "0,1"}, {"blocks_to_swap": 2}])
def test_with_a_vram_budget_the_wish_names_candidates(wish):
    selection = select(BlockSwapArgs(**wish, vram_budget="8g"), layout())
    assert len(selection.candidates) == 2
    assert not selection.exact
    assert "candidates" in selection.sentences[-1]


def test_a_ram_budget_leaves_a_list_exact():
    assert select(BlockSwapArgs(blocks="0", ram_budget="8g"), layout()).exact


def test_a_budget_alone_offers_all_blocks():
    selection = select(BlockSwapArgs(vram_budget="8g"), layout())
    assert selection.candidates == blocks(*range(8))
    assert not selection.exact


def test_vace_blocks_stay_when_only_blocks_are_named():
    selection = select(BlockSwapArgs(blocks="0"), layout(vace=4))
    assert selection.candidates == blocks(0)
    assert "all 4 VACE blocks stay resident" in selection.sentences[-1]


def test_vace_blocks_are_counted_on_their_own():
    selection = select(BlockSwapArgs(blocks="0", vace_blocks_to_swap=2), layout(vace=4))
    assert selection.candidates == ("blocks.0", "vace_blocks.1", "vace_blocks.3")
    assert selection.exact


def test_a_vace_count_alone_leaves_the_blocks_automatic():
    selection = select(BlockSwapArgs(vace_blocks_to_swap=1), layout(vace=4))
    assert selection.candidates == (*blocks(0, 1, 2, 3), "vace_blocks.3", *blocks(4, 5, 6, 7))
    assert not selection.exact


def test_a_vace_count_beyond_the_model_is_clamped_and_said():
    selection = select(BlockSwapArgs(blocks_to_swap=0, vace_blocks_to_swap=15), layout(vace=4))
    assert len(selection.candidates) == 4
    assert "vace_blocks_to_swap=15 was asked, the model has 4 VACE blocks" in " ".join(
        selection.sentences
    )


def test_vace_blocks_asked_of_a_model_without_any_are_said():
    selection = select(BlockSwapArgs(blocks_to_swap=1, vace_blocks_to_swap=3), layout())
    assert selection.sentences[-1] == (
        "vace_blocks_to_swap=3 was asked, the model has 0 VACE blocks"
    )


def test_the_usual_zero_for_vace_is_not_worth_a_word():
    selection = select(BlockSwapArgs(blocks="0", vace_blocks_to_swap=0), layout())
    assert len(selection.sentences) == 1


@pytest.mark.parametrize(
    ("flag", "kind"),
    [("offload_txt_emb", "text_embedder"), ("offload_img_emb", "image_embedder")],
)
def test_an_embedder_is_streamed_only_when_asked(flag, kind):
    assert kind not in select(BlockSwapArgs(), layout()).candidates
    selection = select(BlockSwapArgs(**{flag: True}), layout())
    assert selection.candidates == (kind, *blocks(*range(8)))
    assert not selection.exact
    exact = select(BlockSwapArgs(blocks="3", **{flag: True}), layout())
    assert exact.candidates == (kind, *blocks(3))
    assert exact.exact


@pytest.mark.parametrize("flag", ["offload_txt_emb", "offload_img_emb"])
def test_an_embedder_that_the_model_lacks_is_said(flag):
    selection = select(BlockSwapArgs(**{flag: True}), layout(embedders=()))
    assert f"{flag} was asked, the model has no " in selection.sentences[-1]


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ModelError, match=r"^toy has no transformer blocks"):
        select(BlockSwapArgs(), layout(blocks=0))
