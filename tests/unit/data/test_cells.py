"""Single values of a file of pairs."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdistill.data.cells import (
    CellFault,
    parse_id,
    parse_label,
    parse_turns,
    quote_short,
)


def test_values_are_quoted_in_one_short_line_of_ascii():
    assert quote_short("é\n") == r"'\xe9\n'"
    assert quote_short("x" * 41) == "'" + "x" * 37 + "...'"
    assert quote_short([1, None]) == "'[1, None]'"


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_64_bit_id_is_kept_as_written(number):
    assert parse_id(str(number)) == parse_id(number) == str(number)


@pytest.mark.parametrize("value", ["01", "+1", " 1", "1_0", "١", None, True, "0x1"])
def test_other_ids_are_refused(value):
    with pytest.raises(CellFault):
        parse_id(value)


@pytest.mark.parametrize(
    "value", ["a", "a\rb", "=1", "é", b"\xc3\xa9", 7, 0.5, "x" * 256]
)
def test_any_text_may_be_an_id_where_kaggle_does_not_ask_for_numbers(value):
    text = value.decode() if isinstance(value, bytes) else str(value)
    assert parse_id(value, integer=False) == text


@pytest.mark.parametrize(
    "value",
    [
        *("", None, "\ud800x", "x\udfff", "a\0", b"\xff", b"a\0", "x" * 257, 10**300),
        *(["a"], {"a": 1}, ("a",), {"a"}, object),
    ],
    ids=repr,
)
def test_an_id_that_cannot_be_written_as_it_is_is_refused(value):
    with pytest.raises(CellFault) as refused:
        parse_id(value, integer=False)
    assert refused.value.column == "id"
    assert str(refused.value).isascii()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "value", ['["' + "a" * (16 << 20) + '"]', ["a" * 999] * 17_000, [None] * (17 << 20)]
)
def test_a_text_far_longer_than_any_row_is_refused(value):
    with pytest.raises(CellFault, match="characters; use at most 16,777,216"):
        parse_turns(value, "prompt", Counter())


@pytest.mark.parametrize("value", [True, 1, 1.0, "1"])
def test_typed_labels(value):
    assert parse_label(value, "winner_tie") == 1


@pytest.mark.parametrize("value", [float("nan"), None, 2, -1, "01", "1.0", " 1", 0.5])
def test_other_labels_are_refused(value):
    with pytest.raises(CellFault):
        parse_label(value, "winner_tie")


@settings(deadline=None)
@given(st.text(max_size=40))
def test_no_cell_is_ever_evaluated_or_fails_oddly(cell):
    try:
        turns = parse_turns(cell, "prompt", Counter())
    except CellFault:
        return
    assert all(isinstance(turn, str) for turn in turns)
    "".join(turns).encode()
