"""A driver's signals stop its jobs, which were started with the signals blocked."""

import os
import signal
import subprocess
import sys
import time

import pytest
from job_samples import wait_for

from prefdistill.running.code_digests import SCRIPTS
from prefdistill.running.stopping import TERMINAL_SIGNALS

# A driver with one job, which says what it gets, and ends if it is told to.
DRIVER = """
import subprocess, sys, time, types
from prefdistill.pipeline.stops import end_on_signals, stop_jobs_on_signals
end_on_signals()
if sys.argv[1] == "early":
    print("ready", flush=True)
    time.sleep(60)
done = []
scheduler = types.SimpleNamespace(exit_gracefully=lambda: done.append("graceful"))
stop_jobs_on_signals(types.SimpleNamespace(scheduler=scheduler, local_exec=True))
job = subprocess.Popen([sys.executable, ".snakemake/scripts/job.py", sys.argv[1]])
print("job ended with", job.wait(), *done, flush=True)
"""
JOB = """
import signal, sys, time
from prefdistill.running.stopping import TERMINAL_SIGNALS, stop_on, stop_reason
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
print("blocked", all(each in blocked for each in TERMINAL_SIGNALS), flush=True)
print("ready", flush=True)
time.sleep(0.5)
stop_on(*TERMINAL_SIGNALS)
while stop_reason() is None or sys.argv[1] == "stubborn":
    time.sleep(0.01)
sys.exit(143)
"""


@pytest.fixture
def start(tmp_path):
    """Function that starts the driver, and returns it once it is ready."""
    scripts = tmp_path / ".snakemake/scripts"
    scripts.mkdir(parents=True)
    (scripts / "job.py").write_text(JOB)
    started = []

    def start(how, *signals):
        process = subprocess.Popen(
            ["env", "--default-signal=INT,HUP,QUIT", *signals,
             sys.executable, "-c", DRIVER, how],
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(SCRIPTS)}, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        wait_for(process, "ready")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("to_group", [False, True])
@pytest.mark.parametrize("number", TERMINAL_SIGNALS)
def test_every_signal_stops_the_jobs(start, number, to_group):
    driver = start("job")
    (os.killpg if to_group else os.kill)(driver.pid, number)
    said = driver.communicate(timeout=30)[0]
    assert "job ended with 143 graceful" in said
    assert said.splitlines()[-1] == (
        f"stopped by {number.name}; the same command goes on"
    )
    assert "Traceback" not in said


@pytest.mark.parametrize("number", TERMINAL_SIGNALS)
def test_before_the_first_job_a_signal_ends_the_driver(start, number):
    driver = start("early")
    driver.send_signal(number)
    assert driver.communicate(timeout=30)[0] == (
        f"stopped by {number.name} before the first job\n"
    )
    assert driver.returncode == 143


def test_a_second_interrupt_kills_a_job_that_does_not_end(start):
    driver = start("stubborn")
    driver.send_signal(signal.SIGINT)
    wait_for(driver, "stopping on SIGINT")
    time.sleep(0.3)
    driver.send_signal(signal.SIGINT)
    assert "job ended with -9" in driver.communicate(timeout=30)[0]


def test_a_driver_under_nohup_outlives_its_terminal(start):
    driver = start("job", "--ignore-signal=HUP")
    os.killpg(driver.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert driver.poll() is None
    driver.terminate()
    said = driver.communicate(timeout=30)[0]
    assert said.splitlines()[-1] == "stopped by SIGTERM; the same command goes on"
