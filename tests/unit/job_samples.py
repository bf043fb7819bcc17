"""A job in a process of its own, commands in Slurm's place, and its output."""

# A job that works for `steps` tenths of a second and writes its process number; it can
# be stopped between two steps.
JOB = """
import os, sys, time, types
from prefdistill.storage.whole_files import write_text
from prefdistill.errors import Interrupted
from prefdistill.running.job import run_job
from prefdistill.running.job import guarded
from prefdistill.running.stopping import stop_requested
job = types.SimpleNamespace(
    log=["logs/rule/a.log"], threads=1, input=["in.txt"], output=["out.txt"],
    params={"x": sys.argv[2]},
)
with guarded(job):
    print("started", flush=True)
    for step in range(int(sys.argv[1])):
        if stop_requested():
            raise Interrupted(f"saved at step {step}", progressed=step > 0)
        time.sleep(0.1)
    write_text("out.txt", f"{os.getpid()} {os.environ.get('HF_TOKEN')}")
"""


def wait_for(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the job ended without {text!r}")


def command(folder, name, script):
    """Put a command on the path that stands for one of Slurm's."""
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
