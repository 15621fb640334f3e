"""The block list grammar: what is accepted, what is refused, and in which words."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockswap.errors import ArgsError, SelectionError
from blockswap.selection import parse_block_list
from blockswap.selection.grammar import MOST_INDEX, read_indices, read_text


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("", ()),
        (" \n , ,\n", ()),
        ("0", (0,)),
        ("0-5", (0, 1, 2, 3, 4, 5)),
        ("0,2,3-5", (0, 2, 3, 4, 5)),
        ("5\n1\r\n3", (1, 3, 5)),
        (" 2 ,\t4 - 6 ", (2, 4, 5, 6)),
        ("3,3,2-4", (2, 3, 4)),
        ("7-7", (7,)),
        ("007", (7,)),
        ("9999", (9999,)),
    ],
)
def test_lists_as_people_write_them(text, indices):
    assert parse_block_list(text) == indices


@pytest.mark.parametrize("part", ["a", "1.5", "0x1", "+1", "1_0", "٣", "²", "1 2", "0–5", "True"])
def test_what_is_no_integer_is_quoted(part):
    with pytest.raises(SelectionError) as caught:
        parse_block_list(f"0, {part} ,2")
    assert str(caught.value).startswith(f"Invalid integer: '{part}': ")


@pytest.mark.parametrize(
    "part", ["-3", "3-", "-", "0-5-7", "1-x", "x-1", "1--2", "3-1", "0-99999999999", "10000", "٣-٤"]
)
def test_what_is_no_range_is_quoted(part):
    with pytest.raises(SelectionError) as caught:
        parse_block_list(f"0,{part}\n2")
    assert str(caught.value).startswith(f"Invalid range: '{part}': ")


def test_a_backward_range_says_how_to_write_it():
    with pytest.raises(SelectionError, match="write 1-3"):
        parse_block_list("3-1")


@pytest.mark.parametrize("text", ["9" * 5000, "0-" + "9" * 5000, "a" * 5000])
def test_a_very_long_part_is_refused_in_a_short_sentence(text):
    with pytest.raises(SelectionError) as caught:
        parse_block_list(text)
    assert len(str(caught.value)) < 200


@settings(deadline=None)
@given(st.text(alphabet="0123456789-,. \n\tax٣", max_size=40))
def test_any_text_is_a_list_or_one_sentence_in_the_agreed_words(text):
    indices, said = outcome_of(text)
    assert list(indices) == sorted(set(indices))
    assert all(0 <= index <= MOST_INDEX for index in indices)
    assert said == "" or said.startswith(("Invalid range: '", "Invalid integer: '"))
    assert "\n" not in said


def outcome_of(text):
    try:
        return parse_block_list(text), ""
    except SelectionError as error:
        return (), str(error)


@settings(deadline=None)
@given(st.sets(st.integers(0, 200)))
def test_a_list_written_out_reads_back(indices):
    assert parse_block_list(",".join(map(str, indices))) == tuple(sorted(indices))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted), max_size=6))
def test_ranges_name_all_blocks_between_their_ends(ranges):
    text = "\n".join(f"{first} - {last}" for first, last in ranges)
    named = {index for first, last in ranges for index in range(first, last + 1)}
    assert parse_block_list(text) == tuple(sorted(named))


def test_a_list_keeps_the_words_of_its_parts():
    block_list = read_text(" 3-5\n0 , 0-1")
    assert block_list.text == "3-5,0,0-1"
    assert block_list.indices == (0, 1, 3, 4, 5)


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("0, 38-41", 40, "Invalid range: '38-41': the model has blocks 0-39"),
        ("41", 40, "Invalid range: '41': the model has blocks 0-39"),
        ("1", 1, "Invalid range: '1': the model has only block 0"),
    ],
)
def test_a_part_beyond_the_model_is_quoted_as_written(text, count, message):
    with pytest.raises(SelectionError) as caught:
        read_text(text).check_against_model(count)
    assert str(caught.value) == message


def test_a_list_within_the_model_passes():
    assert read_text("0,38-39").check_against_model(40) is None


def test_numbers_are_parts_of_their_own():
    assert read_indices([5, 1, 5]).text == "5,1,5"
    assert read_indices(range(3)).indices == (0, 1, 2)


class Refusing:
    """Like a tensor of fractions: has the method of an integer and refuses when it is called."""

    def __index__(self):
        raise TypeError("only integers")

    def __str__(self):
        return "1.5"


@pytest.mark.parametrize("value", ["a", 1.5, True, None, Refusing()])
def test_a_listed_value_that_is_no_integer_is_quoted(value):
    with pytest.raises(SelectionError) as caught:
        read_indices([0, value])
    assert str(caught.value).startswith(f"Invalid integer: '{value}': ")


@pytest.mark.parametrize("value", [-1, 10000])
def test_a_listed_number_that_no_model_has_is_an_invalid_range(value):
    with pytest.raises(ArgsError, match=f"^Invalid range: '{value}': "):
        read_indices([value])
