"""Send a terminal's signals to whole runs at random instants, and resume them.

    python tests/chaos/signals.py --runs 8 --signals 4 --seed 0

Each run of the workflow's training part gets some signals, one after the other, at
random instants: SIGINT, SIGQUIT, SIGHUP or SIGTERM, to the driver's process group as a
terminal sends it, or to the driver alone. Checkpoints are off, so steps are kept only
if a stopped job saves. After each signal the command must end soon, without a traceback
and with an understandable last line, and leave no job behind. The same command goes on.
In the end the results must equal those of an undisturbed run, byte for byte.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from driving import Driver, adopt_orphans, clock, digests, jobs

TARGET = "results/student/fold0/adapter_model.safetensors"
CONFIG = """
teachers:
  llama: {training: {epochs: 500, max_steps: 150, checkpoint_steps: 100000}}
student: {training: {epochs: 500, max_steps: 150, checkpoint_steps: 100000}}
"""
COMPARED = ("results/**/*.safetensors", "results/**/*.npz")
SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)
END_S = 30.0
LAST_LINE = re.compile(r"stopped by SIG\w+(; the same command goes on| before the .*)")
STEP = re.compile(r": (\d+)/150 steps|saved at step (\d+) of|(going on from) step")


def is_settled(folder: Path) -> list[str]:
    """Name what a stopped command has left wrong."""
    wrong = []
    text = (folder / "terminal.txt").read_text()
    if "Traceback" in text:
        wrong.append("a traceback")
    if not LAST_LINE.fullmatch(text.splitlines()[-1]):
        wrong.append(f"the last line: {text.splitlines()[-1]}")
    if jobs():
        wrong.append("jobs left behind")
    return wrong


def lost_steps(folder: Path) -> int:
    """Count the steps that jobs had shown and not saved when they were stopped."""
    lost = 0
    for log in folder.glob("logs/*/*.earlier.log"):
        for part in log.read_text().split("\n\n"):
            steps = [int(a or b) for a, b, _ in STEP.findall(part) if a or b]
            if steps:
                saved = re.findall(r"saved at step (\d+) of", part)
                lost += max(steps) - (int(saved[-1]) if saved else 0)
    return lost


def trial(folder: Path, config: Path, instants: list[float], rng: random.Random):
    """Run once under signals; return what went wrong, and the signals that hit."""
    wrong, sent = [], []
    for instant_s in instants:
        (folder / "terminal.txt").unlink(missing_ok=True)
        driver = Driver(folder, TARGET, config)
        if driver.wait(instant_s):
            break
        number, group = rng.choice(SIGNALS), rng.random() < 0.5
        (os.killpg if group else os.kill)(driver.pid, number)
        sent.append(f"{number.name} {'group' if group else 'driver'} {instant_s:.2f} s")
        if not driver.wait(END_S):
            wrong.append(f"{sent[-1]}: runs on for {END_S} s")
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
        elif driver.exit_code != 0:  # it may have been about to end
            wrong += [f"{sent[-1]}: {each}" for each in is_settled(folder)]
        driver.wait_for_orphans()
    driver = Driver(folder, TARGET, config)
    driver.wait()
    if driver.exit_code:
        wrong.append(f"the last command failed: {driver.exit_code}")
    lost = lost_steps(folder)
    if lost > len(sent):
        wrong.append(f"{lost} steps lost")
    return wrong, sent, lost


def main() -> int:
    """Run the trials, and print how many runs ended right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--signals", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    adopt_orphans()
    rng = random.Random(arguments.seed)
    n_right = n_sent = n_lost = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "signals.yaml"
        config.write_text(CONFIG)
        started = time.monotonic()
        driver = Driver(folder / "undisturbed", TARGET, config)
        driver.wait()
        if driver.exit_code:
            sys.exit((folder / "undisturbed/terminal.txt").read_text()[-2000:])
        duration_s = time.monotonic() - started
        expected = digests(folder / "undisturbed", *COMPARED)
        print(f"undisturbed: {duration_s:.1f} s, {len(expected)} files", flush=True)
        for k in range(1, arguments.runs + 1):
            place = folder / f"{k}"
            draw = rng.random() < 0.25  # a short time: before and as jobs start
            longest_s = 4.0 if draw else duration_s
            instants = [rng.uniform(0.3, longest_s) for _ in range(arguments.signals)]
            wrong, sent, lost = trial(place, config, instants, rng)
            if digests(place, *COMPARED) != expected:
                wrong.append("the results differ")
            n_right += not wrong
            n_sent += len(sent)
            n_lost += lost
            left_s = (time.monotonic() - started) / k * (arguments.runs - k)
            print(f"{k}/{arguments.runs}: {', '.join(sent)}; ETA {clock(left_s)}")
            for each in wrong:
                print(f"  {each}")
            if wrong:
                print((place / "terminal.txt").read_text()[-1500:])
            sys.stdout.flush()
    print(f"{n_sent} signals, {n_lost} steps lost")
    print(f"{n_right}/{arguments.runs}")
    return n_right != arguments.runs


if __name__ == "__main__":
    sys.exit(main())
