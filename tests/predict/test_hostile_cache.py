"""Kept predictions and probes that cannot be what was kept: thrown away, in one sentence."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockswap.cache import load_json, read_json
from blockswap.predict import cache as predictions
from blockswap.predict.cache import remembered
from blockswap.predict.transformer import cost_of

QUESTION = {"what": "a forward"}
GOOD = {
    "activation_bytes": 1, "input_bytes": 2, "output_bytes": 3, "rest_flops": 4,
    "unit_flops": [["blocks.0", 5]], "attention_flops": [],
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("BLOCKSWAP_CACHE", str(tmp_path_factory.mktemp("cache")))


def kept_file():
    return predictions._path_of({"schema": predictions._SCHEMA, **QUESTION})


def keep(answer):
    remembered(QUESTION, lambda: answer)


NOT_COUNTS = (-1, 1.5, True, None, "7", [], {}, 1e300, [1])


@pytest.mark.parametrize("field", [name for name, value in GOOD.items() if value.__class__ is int])
@pytest.mark.parametrize("value", NOT_COUNTS, ids=repr)
def test_what_is_no_count_is_worked_out_anew(field, value):
    keep({**GOOD, field: value})
    with pytest.warns(RuntimeWarning, match="worked out anew"):
        assert remembered(QUESTION, lambda: GOOD, cost_of) == cost_of(GOOD)
    assert remembered(QUESTION, pytest.fail, cost_of) == cost_of(GOOD)


@pytest.mark.parametrize("units", [7, "ab", [["blocks.0"]], [["blocks.0", -5]], [[1, 2, 3]], {}])
def test_what_are_no_units_is_worked_out_anew(units):
    keep({**GOOD, "unit_flops": units})
    if units == {}:  # none at all: an empty list to Python
        assert remembered(QUESTION, pytest.fail, cost_of).unit_flops == ()
        return
    with pytest.warns(RuntimeWarning, match="worked out anew"):
        assert remembered(QUESTION, lambda: GOOD, cost_of) == cost_of(GOOD)


@pytest.mark.parametrize(
    "answer", [7, "text", [], None, {}, {"activation_bytes": 1}, {**GOOD, "x": 1}]
)
def test_an_answer_of_another_form_is_worked_out_anew(answer):
    keep(answer)
    with pytest.warns(RuntimeWarning, match="worked out anew"):
        assert remembered(QUESTION, lambda: GOOD, cost_of) == cost_of(GOOD)


CONTENTS = (b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"", b"null", b"NaN", b"9" * 10_000,
            b"1e999", b" " * (5 * 1024 * 1024))  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: repr(content[:12]))
def test_a_file_without_a_value_is_worked_out_anew(content):
    keep(GOOD)
    kept_file().write_bytes(content)
    with pytest.warns(RuntimeWarning, match="worked out anew"):
        assert remembered(QUESTION, lambda: GOOD, cost_of) == cost_of(GOOD)
    assert remembered(QUESTION, pytest.fail, cost_of) == cost_of(GOOD)


@pytest.mark.parametrize("how", ["pipe", "folder", "loop"])
def test_what_is_no_plain_file_never_hangs(how):
    keep(GOOD)
    path = kept_file()
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)
    assert read_json(path) is None
    with pytest.warns(RuntimeWarning, match="worked out anew"):
        assert remembered(QUESTION, lambda: GOOD, cost_of) == cost_of(GOOD)


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(raw=st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_value_error(raw, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(raw)
    try:
        load_json(path)
    except ValueError:
        assert read_json(path) is None
