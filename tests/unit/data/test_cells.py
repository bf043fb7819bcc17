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
