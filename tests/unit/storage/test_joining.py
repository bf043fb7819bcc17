"""Rows joined by id, against a search from the front."""

import numpy as np
import pytest

from prefdistill.storage.joining import find_rows


def test_rows_are_those_of_a_plain_search():
    rng = np.random.default_rng(0)
    ids = np.array([f"train:{n}" for n in rng.permutation(50)])
    wanted = [f"train:{n}" for n in rng.integers(80, size=30)]
    slow = [ids.tolist().index(name) if name in ids else -1 for name in wanted]
    assert min(slow) == -1
    for given in (wanted, np.array(wanted)):
        found = find_rows(ids, given)
        assert found.tolist() == slow
        assert found.dtype == np.int64
    assert find_rows(ids.tolist(), wanted).tolist() == slow


@pytest.mark.parametrize("n_ids", [0, 2])
def test_nothing_wanted_is_no_rows(n_ids):
    ids = np.array(["a", "b"][:n_ids], dtype=np.str_)
    assert find_rows(ids, np.array([], dtype=np.str_)).shape == (0,)
    assert find_rows(ids, ["c"]).tolist() == [-1]
