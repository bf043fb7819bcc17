"""Lines of progress, against a clock that the tests set."""

import logging

import pytest

from prefdistill.running import progress
from prefdistill.running.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines(caplog):
    """Function that returns the lines logged so far."""
    caplog.set_level(logging.INFO, progress.__name__)
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_line_has_throughput_time_left_and_a_note(clock, lines):
    work = Progress(10, "steps", every_s=0)
    clock[0] += 20
    work.update(2, n_tokens=100_000, note="loss 0.5")
    assert lines() == ["2/10 steps (20 %), 5,000 tokens/s, ETA 0:01:20, loss 0.5"]


def test_without_tokens_no_throughput_is_shown(clock, lines):
    work = Progress(4, "files", every_s=0)
    clock[0] += 3600
    work.update()
    assert lines() == ["1/4 files (25 %), ETA 3:00:00"]


def test_lines_come_once_per_interval_and_at_the_end(clock, lines):
    work = Progress(100, "steps", every_s=10)
    for _ in range(100):
        clock[0] += 0.5
        work.update()
    n_done = [int(line.partition("/")[0]) for line in lines()]
    assert n_done == [20, 40, 60, 80, 100]
    assert lines()[-1] == "100/100 steps (100 %), ETA 0:00:00"


def test_the_last_line_does_not_wait_for_the_interval(clock, lines):
    work = Progress(2, "steps", every_s=1000)
    clock[0] += 1
    work.update()
    assert lines() == []
    clock[0] += 1
    work.update()
    assert lines() == ["2/2 steps (100 %), ETA 0:00:00"]


def test_units_of_an_earlier_job_do_not_count_towards_the_rate(clock, lines):
    work = Progress(100, "steps", done=80, every_s=0)
    clock[0] += 10
    work.update(10, n_tokens=1000)
    assert lines() == ["90/100 steps (90 %), 100 tokens/s, ETA 0:00:10"]


def test_no_time_and_no_units_are_no_division_by_zero(clock, lines):
    Progress(2, "steps", every_s=0).update()
    Progress(0, "rows").update(0)
    assert lines() == ["1/2 steps (50 %), ETA 0:00:00", "0/0 rows (0 %), ETA 0:00:00"]
