"""Files of logits, and the rows in them."""

import json
import zipfile

import numpy as np
import pytest

from prefdistill.classes import CLASSES
from prefdistill.errors import DamagedFile, UserError
from prefdistill.storage.logits import (
    LOGITS_MEMBERS,
    Logits,
    read_logits,
    write_logits,
)

META = {"views": ["AB", "BA"], "adapter": "0123"}


def arrays(n=4, **changes):
    """The arguments of logits of ``n`` rows in two views."""
    values = np.random.default_rng(0).normal(size=(n, 2, 3)).astype(np.float32)
    ids = np.array([f"train:{row}" for row in range(n)], dtype=np.str_)
    split = np.array(["test", "dev", "select", "train"] * n, dtype=np.str_)[:n]
    return {"ids": ids, "split": split, "logits": values, "meta": META} | changes


@pytest.fixture
def path(tmp_path):
    """A file of four rows."""
    write_logits(tmp_path / "logits.npz", Logits(**arrays()))
    return tmp_path / "logits.npz"


@pytest.mark.parametrize("n", [0, 1, 4])
def test_logits_come_back_as_they_were(tmp_path, n):
    one = Logits(**arrays(n))
    write_logits(tmp_path / "logits.npz", one)
    other = read_logits(tmp_path / "logits.npz")
    for name in ("ids", "split", "logits"):
        np.testing.assert_array_equal(getattr(other, name), getattr(one, name))
    assert other.logits.dtype == np.float32
    assert other.views == META["views"]
    assert other.meta == META | {"classes": list(CLASSES)}


def test_logits_are_stored_as_float32(tmp_path):
    values = arrays()["logits"].astype(np.float64)
    write_logits(tmp_path / "logits.npz", Logits(**arrays(logits=values)))
    assert read_logits(tmp_path / "logits.npz").logits.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": np.arange(4)}, "ids or split are not texts"),
        ({"split": np.array([b"test"] * 4)}, "ids or split are not texts"),
        ({"logits": np.zeros((4, 2, 3), int)}, "logits are int64, not floating"),
        ({"logits": np.zeros((4, 2, 2))}, r"shape \(4, 2, 2\), not \(n, views, 3\)"),
        ({"logits": np.zeros((4, 3))}, r"shape \(4, 3\), not \(n, views, 3\)"),
        ({"logits": np.zeros((3, 2, 3))}, "differ in their number of rows"),
        ({"split": np.array(["test"] * 3)}, "differ in their number of rows"),
        ({"meta": {}}, r"logits have 2 views, meta names \[\]"),
        ({"meta": {"views": ["AB"]}}, r"2 views, meta names \['AB'\]"),
        ({"meta": {"views": ["AB", "AB"]}}, "2 views, meta names"),
        ({"meta": {"views": ["AB", "XY"]}}, "2 views, meta names"),
        ({"ids": np.array(["a", "b", "a", "c"])}, "a row id occurs twice"),
        ({"logits": np.full((4, 2, 3), np.nan)}, "a logit is not finite"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Logits(**arrays(**changes))


def test_a_logit_too_large_for_the_file_leaves_the_former_file(path):
    before = path.read_bytes()
    large = Logits(**arrays(logits=np.full((4, 2, 3), 1e300)))
    with (
        np.errstate(over="ignore"),
        pytest.raises(UserError, match=r"not written, as a logit is NaN or infinite"),
    ):
        write_logits(path, large)
    assert path.read_bytes() == before


def test_rows_are_selected_with_their_ids_and_splits():
    one = Logits(**arrays())
    for rows in (np.array([3, 0]), np.array([True, False, False, True])):
        part = one.select(rows)
        assert part.ids.tolist() == one.ids[rows].tolist()
        assert part.split.tolist() == one.split[rows].tolist()
        np.testing.assert_array_equal(part.logits, one.logits[rows])
        assert part.meta == META


def test_rows_are_found_by_id():
    one = Logits(**arrays())
    wanted = np.array(["train:2", "train:0", "train:2"])
    assert one.rows_of(wanted).tolist() == [2, 0, 2]
    with pytest.raises(UserError, match="2 ids have no logits, such as train:9"):
        one.rows_of(np.array(["train:1", "train:9", "test:1"]))


def test_replaced_logits_keep_the_rows():
    one = Logits(**arrays())
    other = one.replace_logits(one.logits.astype(np.float64) * 2)
    assert other.logits.dtype == np.float32
    np.testing.assert_array_equal(other.logits, one.logits * 2)
    assert other.ids is one.ids
    with pytest.raises(UserError, match="differ in their number of rows"):
        one.replace_logits(one.logits[:2])


def save(path, **changes):
    """Write the members as numpy does, with some changed, or left out if None."""
    members = arrays() | {"meta": np.array(json.dumps(META))} | changes
    kept = {name: value for name, value in members.items() if value is not None}
    np.savez_compressed(path, **kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": None}, r"members are ids\.npy, logits\.npy, meta\.npy"),
        ({"more": np.zeros(1)}, r"members are .*more\.npy"),
        (
            {"ids": np.array(["a", 1, None, {}], dtype=object)},
            r"ids\.npy is not an array of",
        ),
        ({"meta": np.array("{")}, "not a whole logits file"),
        ({"ids": np.array(["a", "a", "b", "c"])}, "a row id occurs twice"),
    ],
)
def test_other_archives_are_refused(path, changes, message):
    save(path, **changes)
    with pytest.raises(DamagedFile, match=message):
        read_logits(path)


def test_a_header_that_promises_more_than_the_file_has_is_refused(path):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(f"{name}.npy") for name in LOGITS_MEMBERS}
    large = members["logits"].replace(b"(4, 2, 3)", b"(9, 2, 3)")
    assert large != members["logits"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"logits": large}).items():
            archive.writestr(f"{name}.npy", content)
    with pytest.raises(
        DamagedFile, match=r"logits\.npy is not an array of \(9, 2, 3\)"
    ):
        read_logits(path)


def test_a_file_that_was_cut_short_is_refused(path):
    content = path.read_bytes()
    for share in (0, 0.3, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(DamagedFile, match="not a whole logits file"):
            read_logits(path)
