"""Slurm's durations."""

import pytest

from prefdistill.running.slurm import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("59", 59),
        ("1:02\n", 62),
        ("1:00:00", 3600),
        ("2-01:00:01", 2 * 86400 + 3601),
        ("UNLIMITED", None),
        ("", None),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds
