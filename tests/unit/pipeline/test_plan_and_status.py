"""The tables of what a run would take, and where it stands."""

from dataclasses import replace

from prefdistill.pipeline import plan_and_status
from prefdistill.pipeline.cost_model import Work
from prefdistill.pipeline.job_states import Job, State
from prefdistill.pipeline.plan_and_status import plan_text, status_text

# 80 TFLOP/s for two hours on two GPUs.
WORK = Work(30, tflop=80 * 2 * 7200, gpus=2, disk_gb=5, scratch_gb=40)
JOB = Job("train_teacher", True, 30.0, 2, WORK, None)
TABLES = Job("make_folds", True, 2.0, 0, Work(2, minutes=30, disk_gb=1), None)


def test_a_plan_adds_up_what_is_needed():
    done = replace(JOB, needed=False)
    text = plan_text([TABLES, JOB, JOB, done], 80, free_gb=100)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["make_folds"] == ["1", "0.50", "2.00", "1.00"]
    assert rows["train_teacher"] == ["2", "2", "8.00", "2.00", "30.0", "10.0", "40.0"]
    assert rows["all"] == ["3", "2", "8.00", "2.00", "30.0", "11.0", "40.0"]
    assert "at\n80 TFLOP/s" in text
    assert "warning" not in text
    assert "warning: only 10.0 GB are free here. The results may take 11.0 GB." in (
        plan_text([TABLES, JOB, JOB], 80, free_gb=10)
    )
    assert plan_text([done], 80, 1) == "Nothing is to be done."


def test_a_rule_without_an_estimate_is_named():
    text = plan_text([JOB, replace(JOB, rule="custom", work=None)], 80, 100)
    assert text.endswith("without an estimate: custom")


def test_a_status_adds_up_what_is_left(tmp_path, monkeypatch):
    log = tmp_path / "llama.fold0.log"
    running, done = replace(JOB, log=log), replace(JOB, needed=False)
    states = {
        running: State("running", "5/10 steps (50 %)", share=0.5),
        done: State("done", share=1.0),
    }
    monkeypatch.setattr(plan_and_status, "state_of", states.get)
    lines = status_text([running, done], 80, "a driver", "all").splitlines()
    assert lines[0] == "a driver is at work."
    # Of four GPU-hours half are left; the other job is done.
    assert lines[-5].split() == ["all", "1", "1", "2.00"]
    assert "running: train_teacher llama.fold0: 5/10 steps (50 %)" in lines
    nobody = status_text([done], 80, None, "all").splitlines()
    assert nobody[0] == "No driver is at work here."
