"""Test the Slurm profile on a real Slurm: resources of jobs, and interruptions."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from toy import CONFIGS, TEACHER, Driver, job_log, jobs, slurm, wait_until

SLURM = Path(os.environ.get("SLURM_TEST_FOLDER", "."))
PROFILE = Path(__file__).parents[2] / "profiles/slurm/config.yaml"
RULE = "train_teacher"


def option(name: str, value: object) -> tuple[str, str]:
    """Set a resource of the long job on the command line."""
    return ("--set-resources", f"{RULE}:{name}={value}")


def resources(text: str) -> dict[str, list[dict[str, str]]]:
    """Parse the resources of each rule's jobs from the driver's output."""
    found: dict[str, list[dict[str, str]]] = {}
    for rule, block in re.findall(
        r"^rule (\w+):\n(.*?)(?=^\S|\Z)", text, flags=re.MULTILINE | re.DOTALL
    ):
        line = re.search(r"^ +resources: (.*)$", block, flags=re.MULTILINE)
        pairs = (pair.partition("=") for pair in line[1].split(", "))
        found.setdefault(rule, []).append({key: value for key, _, value in pairs})
    return found


def minutes(limit: str) -> int:
    days, _, clock = limit.rpartition("-")
    hours, minute, _ = clock.split(":")
    return (int(days or 0) * 24 + int(hours)) * 60 + int(minute)


def running(driver):
    """Wait until the long job trains, and return its record."""
    scratch = driver.folder / "scratch/train_teacher/llama_0"
    wait_until(lambda: list(scratch.glob("*.json")), "the job trains")
    return jobs(driver.folder, RULE)[-1]


def trained_as_expected(driver, expected):
    assert driver.finish() == 0, driver.text[-4000:]
    assert (driver.folder / TEACHER).read_bytes() == expected


def test_every_job_gets_what_its_rule_asks_for(finished):
    """Check the whole reduced workflow against Slurm's records."""
    assert (finished.folder / "results/submission.csv").exists()
    asked = resources(finished.text)
    on_gpus = set(yaml.safe_load(PROFILE.read_text())["set-resources"])
    records = jobs(finished.folder)
    asked.pop("all", None)
    assert len(records) == sum(map(len, asked.values()))
    for record in records:
        rule = record["rule"]
        assert record["JobState"] == "COMPLETED", record
        wanted = [
            (each["slurm_partition"], int(each["runtime"]), int(each.get("gpu", 0)))
            for each in asked[rule]
        ]
        n_gpus = int(record.get("TresPerJob", "gres:gpu:0").rpartition(":")[2])
        given = (record["Partition"], minutes(record["TimeLimit"]), n_gpus)
        assert given in wanted, rule
        assert (record["Partition"] == "gpu") == (rule in on_gpus)
        assert (n_gpus > 0) == (rule in on_gpus)
    assert {record["rule"] for record in records} >= {
        *("import_pairs", "train_teacher", "infer_logits", "distill_student"),
        *("merge_adapter", "quantise_model", "predict_logits", "evaluate"),
    }


def test_every_job_runs_the_sites_hook(finished):
    ran = (finished.folder / "hook.txt").read_text().split()
    assert set(ran) == {record["JobId"] for record in jobs(finished.folder)}


def test_gpu_jobs_see_their_gpus_and_no_others(finished):
    on_gpus = set(yaml.safe_load(PROFILE.read_text())["set-resources"])
    seen = 0
    for folder in (finished.folder / "logs").iterdir():
        for log in folder.glob("*.log") if folder.name != "slurm" else ():
            devices = re.findall(r"CUDA_VISIBLE_DEVICES=(\S*)", log.read_text())
            assert bool(devices) == (folder.name in on_gpus), log
            assert all(each in ("0", "1") for each in devices), log
            seen += bool(devices)
    assert seen >= 10


def test_a_partition_shorter_than_the_work(start, expected, minutes_of_steps):
    """Check that the job saves, queues itself again and resumes, without a retry."""
    arguments = (*option("slurm_partition", "short"), f"{RULE}:runtime=1")
    adapter = expected(minutes_of_steps)
    driver = start(*arguments, "--retries", "0", n_steps=minutes_of_steps)
    trained_as_expected(driver, adapter)
    (record,) = jobs(driver.folder, RULE)
    assert record["Partition"] == "short"
    assert int(record["Restarts"]) >= 1
    log = job_log(driver.folder)
    assert log.count("queued again") == int(record["Restarts"])
    assert log.count("going on from step") == int(record["Restarts"])


def test_a_time_limit_where_jobs_are_not_queued_again(
    start, expected, minutes_of_steps
):
    """Check that a job ended at its limit resumes in a retry with more time."""
    arguments = (*option("slurm_partition", "gpu"), f"{RULE}:runtime=1 * attempt")
    profile = ("slurm-requeue", "slurm-no-requeue")
    adapter = expected(minutes_of_steps)
    driver = start(*arguments, profile=profile, n_steps=minutes_of_steps)
    trained_as_expected(driver, adapter)
    first, *_, last = jobs(driver.folder, RULE)
    assert first["JobState"] == "TIMEOUT"
    assert last["JobState"] == "COMPLETED"
    assert minutes(last["TimeLimit"]) > minutes(first["TimeLimit"]) == 1
    assert "Slurm did not queue the job again" in job_log(driver.folder)
    assert "going on from step" in job_log(driver.folder)


def test_a_cancelled_job_is_reported_and_tried_again(start, expected):
    driver = start()
    record = running(driver)
    slurm("scancel", record["JobId"])
    trained_as_expected(driver, expected())
    assert f"SLURM-job '{record['JobId']}' failed" in driver.text
    assert "CANCELLED" in driver.text
    assert "going on from step" in job_log(driver.folder)


def test_a_requeued_job_goes_on(start, expected):
    driver = start("--retries", "0")
    slurm("scontrol", "requeue", running(driver)["JobId"])
    trained_as_expected(driver, expected())
    (record,) = jobs(driver.folder, RULE)
    assert record["Restarts"] == "1"
    assert "stopped by SIGTERM: saved at step" in job_log(driver.folder)
    assert "going on from step" in job_log(driver.folder)


def test_a_preempted_job_goes_on(start, expected):
    driver = start(*option("slurm_partition", "scavenge"), "--retries", "0")
    running(driver)
    slurm("sbatch", "--partition", "gpu", "--gpus", "2", "--output", "/dev/null",
          "--wrap", "sleep 3")  # fmt: skip
    trained_as_expected(driver, expected())
    (record,) = jobs(driver.folder, RULE)
    assert record["Restarts"] == "1"
    assert "stopped by SIGTERM: saved at step" in job_log(driver.folder)


def test_a_job_outlives_its_slurmd(start, expected):
    driver = start("--retries", "0")
    running(driver)
    pid_file = SLURM / "run/slurmd.pid"
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    time.sleep(5)
    subprocess.run(["/usr/sbin/slurmd"], check=True)
    trained_as_expected(driver, expected())
    (record,) = jobs(driver.folder, RULE)
    assert (record["JobState"], record["Restarts"]) == ("COMPLETED", "0")


def test_a_job_that_sbatch_rejects_is_one_clear_line(start):
    driver = start(*option("slurm_partition", "nowhere"), "--retries", "0")
    assert driver.finish() != 0
    assert not jobs(driver.folder, RULE)
    assert "invalid partition specified: nowhere" in driver.text
    assert (driver.folder / "results/submission.csv").exists()


def test_a_job_that_fails_is_one_line_with_its_log(start):
    spoilt = "results/folds/fold0.parquet"
    driver = start("--retries", "0", spoil=spoilt)
    assert driver.finish() != 0
    lines = [line for line in driver.text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {spoilt}: not a whole parquet file")
    assert lines[0].endswith("(log: logs/train_teacher/llama.fold0.log)")
    assert "Traceback" not in driver.text
    assert "Traceback" in job_log(driver.folder)


def test_a_killed_driver(start, expected):
    """Check that the same command takes over the job of a dead driver."""
    command = (sys.executable, "-m", "prefdistill", "run")
    driver = start(command=command)
    orphan = running(driver)["JobId"]
    driver.process.kill()
    driver.process.wait()
    again = start(command=command)
    trained_as_expected(again, expected())
    assert f"cancelling 1 Slurm jobs of the dead driver: {orphan}" in again.text
    assert "stopped by SIGTERM: saved at step" in job_log(driver.folder)
    assert "going on from step" in job_log(driver.folder)


def test_a_stopped_driver_cancels_its_jobs_which_save(start, expected):
    driver = start()
    running(driver)
    driver.process.terminate()
    assert driver.finish(timeout_s=60) != 0
    assert driver.text.endswith("stopped by SIGTERM; the same command goes on\n")
    assert "Traceback" not in driver.text
    trained_as_expected(start(), expected())
    assert "stopped by SIGTERM: saved at step" in job_log(driver.folder)
    assert "going on from step" in job_log(driver.folder)


def test_jobs_work_in_any_folder(finished, tmp_path):
    folder = tmp_path / "it's a {run} & more"
    target = "results/simulated/train.csv"
    configs = ("--configfile", *CONFIGS)
    driver = Driver(finished.folder, "--directory", str(folder), *configs, "--", target)
    assert driver.finish() == 0, driver.text[-4000:]
    assert (folder / target).exists()
    assert (folder / "hook.txt").exists()


def test_a_job_that_dies_before_its_log_begins_is_one_line(start):
    driver = start("--retries", "0", profile=("job_env.sh", "no_such_hook.sh"))
    assert driver.finish() != 0
    lines = [line for line in driver.text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "no_such_hook.sh" in lines[0]
    assert f"(log: {driver.folder}/logs/slurm/" in lines[0]
