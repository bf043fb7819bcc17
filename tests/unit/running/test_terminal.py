"""A lost terminal and a closed pipe fail no write."""

import os
import subprocess
import sys

import pytest

from prefdistill.running.code_digests import SCRIPTS
from prefdistill.running.terminal import survive_lost_terminal

# Writes after its readers have gone, and then leaves a sign that it went on.
CODE = """
import logging, sys, time
from prefdistill.running.terminal import survive_lost_terminal
survive_lost_terminal()
logging.basicConfig(level="INFO", stream=sys.stderr)
sys.stdin.readline()
for n in range(3):
    print("out", n, flush=True)
    print("err", n, file=sys.stderr, flush=True)
    logging.info("log")
    sys.stdout.write("x" * 100_000)
open("went_on", "w").close()
"""


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_process_outlives_its_terminal(kind, tmp_path):
    reader, writer = os.pipe() if kind == "pipe" else os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], cwd=tmp_path, start_new_session=True,
        stdin=subprocess.PIPE, stdout=writer, stderr=writer,
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
    )  # fmt: skip
    os.close(writer)
    os.close(reader)
    process.communicate(b"go\n", timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "went_on").exists()


def test_streams_that_are_no_terminal_are_left(capsys):
    before = sys.stdout, sys.stderr
    survive_lost_terminal()
    assert (sys.stdout, sys.stderr) == before
