"""Texts of pairs: clean, and grouped by prompt."""

import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_samples import typed_row
from prompt_samples import CONTROL

from prefdistill.data.texts import (
    SPECIAL_STRINGS,
    clean_batch,
    normalise_prompt,
    prompt_group,
    strip_controls,
)
from prefdistill.storage.tables import (
    PAIRS_SCHEMA,
)


@pytest.mark.parametrize("token", CONTROL)
def test_the_control_tokens_of_all_families_are_known(token):
    assert re.search(SPECIAL_STRINGS, f"x{token}y")


@given(st.lists(st.text(), max_size=3))
def test_equal_in_lower_case_and_folded_means_same_group(turns):
    text = " ".join(turns)
    for same in (text.lower(), f"\n{text}\t", " \u2003".join(text.split())):
        assert prompt_group([same]) == prompt_group(turns)


@pytest.mark.parametrize(
    ("one", "other"),
    [("ﬁne", "FINE"), ("Ａ１", "a1"), ("e\u0301", "É"), ("a\u00a0b", "A B")],
)
def test_compatible_characters_share_a_group(one, other):
    assert normalise_prompt(one) == normalise_prompt(other)


@given(st.text(alphabet=st.characters(max_codepoint=0x2100), max_size=20))
def test_vector_and_plain_stripping_agree(text):
    rows = [typed_row("train:1", [text, "x"], [], [text])]
    table = pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA)
    batch, n_changed = clean_batch(table.to_batches()[0])
    stripped = strip_controls(text)
    assert batch.to_pylist()[0]["prompt"] == [stripped, "x"]
    assert batch.to_pylist()[0]["response_a"] == []
    assert n_changed == 2 * (stripped != text)
    assert strip_controls(stripped) == stripped


def test_sliced_batches_are_cleaned_alike():
    rows = [typed_row(f"train:{n}", [f"p{n}\x00"] * n, "a") for n in range(5)]
    whole = pa.Table.from_pylist(rows, schema=PAIRS_SCHEMA).to_batches()[0]
    cleaned, n_changed = clean_batch(whole.slice(2, 2))
    assert cleaned.column("prompt").to_pylist() == [["p2"] * 2, ["p3"] * 3]
    assert n_changed == 5
