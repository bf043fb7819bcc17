"""What every job shares, in processes of its own: the token, the log, the queue."""

import time

from job_samples import command, wait_for


def test_a_job_works_and_keeps_the_token_to_itself(start, tmp_path):
    process = start(HF_TOKEN="secret")
    assert process.wait() == 0
    assert (tmp_path / "out.txt").read_text() == f"{process.pid} None"
    assert "done in" in (tmp_path / "logs/rule/a.log").read_text()


def test_a_job_queues_itself_again_before_its_time_is_over(start, tmp_path):
    command(tmp_path, "squeue", "echo 0:17")
    command(tmp_path, "scontrol", 'echo "$@" > asked.txt')
    process = start(steps=600, wait=False, SLURM_JOB_ID="42")
    wait_for(process, "stopped by the time limit: saved at step")
    wait_for(process, "queued again")
    assert (tmp_path / "asked.txt").read_text() == "requeue 42\n"
    process.terminate()
    time.sleep(0.3)
    assert (
        process.poll() is None
    )  # it waits for Slurm to end it, so that nothing retries


def test_a_job_that_slurm_does_not_queue_again_says_so(start, tmp_path):
    command(tmp_path, "squeue", "echo 0:17")
    command(tmp_path, "scontrol", "echo Requested operation is disabled >&2; exit 1")
    process = start(steps=600, wait=False, SLURM_JOB_ID="42")
    wait_for(process, "did not queue the job again (Requested operation is disabled)")


def test_a_job_without_progress_is_not_queued_again(start, tmp_path):
    command(tmp_path, "squeue", "echo 0:15")
    command(tmp_path, "scontrol", "touch asked.txt")
    process = start(steps=600, wait=False, SLURM_JOB_ID="42")
    wait_for(process, "stopped by the time limit: saved at step 0")
    time.sleep(0.3)
    assert process.poll() is None
    assert not (tmp_path / "asked.txt").exists()
