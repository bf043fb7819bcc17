"""A job's one line about an error has the remedy for who runs the workflow."""

import pytest

from prefdistill.errors import DamagedFile, UserError
from prefdistill.running.logs import error_line


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("results/data/clean.parquet", "delete it so that rule clean_pairs runs again"),
        ("/run/results/a/b", "delete it so that its rule runs again"),
        ("judges/mine/config.json", "copy or fetch it again"),
    ],
)
def test_a_damaged_file_is_deleted_where_a_rule_made_it(path, advice):
    assert error_line(DamagedFile(path, "not whole")) == f"{path}: not whole; {advice}"


def test_other_errors_keep_their_text():
    assert error_line(UserError("config: folds.n: 0")) == "config: folds.n: 0"
    assert error_line(ValueError("two\nlines")) == "ValueError: two lines"
    assert error_line(OSError(28, "full", "a")).startswith("a: no space left")
