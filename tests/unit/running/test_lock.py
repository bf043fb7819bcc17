"""One copy of a job at a time, with jobs in processes of their own."""

import pytest
from job_samples import wait_for


def test_a_second_copy_waits_and_leaves_the_firsts_output(start, tmp_path):
    first = start(steps=10)
    second = start(steps=10, wait=False)
    wait_for(second, "another copy runs")
    assert first.wait() == second.wait() == 0
    assert "the other copy finished this job" in second.stdout.read()
    assert (tmp_path / "out.txt").read_text().startswith(f"{first.pid} ")


def test_a_second_copy_takes_over_from_a_killed_one(start, tmp_path):
    first = start(steps=600)
    second = start(wait=False)
    wait_for(second, "another copy runs")
    first.kill()
    assert second.wait() == 0
    assert (tmp_path / "out.txt").read_text().startswith(f"{second.pid} ")


@pytest.mark.parametrize("changed", ["params", "input"])
def test_a_copy_of_other_settings_does_its_own_work(start, tmp_path, changed):
    first = start(steps=10)
    if changed == "input":
        (tmp_path / "in.txt").write_text("more")
    second = start(params="2" if changed == "params" else "1", wait=False)
    wait_for(second, "another copy runs")
    assert first.wait() == second.wait() == 0
    assert (tmp_path / "out.txt").read_text().startswith(f"{second.pid} ")


def test_a_waiting_copy_can_be_stopped(start):
    start(steps=600)
    second = start(wait=False)
    wait_for(second, "another copy runs")
    second.terminate()
    assert second.wait() == 143
