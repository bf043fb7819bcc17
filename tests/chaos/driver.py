"""Kill the driver at random instants; the same command must recover each time.

Each trial starts the import, the cleaning and the folds in an empty folder and kills
the driver with SIGKILL, while its jobs continue as orphans. Then it starts the same
command again and compares every result with an undisturbed run.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from driving import Driver, adopt_orphans, clock, digests

TARGET = "folds"
RESULTS = "results/**/*.*"
RECOVERED = "recovered"


def run(folder: Path) -> float:
    """Run undisturbed and return the seconds that it took."""
    started = time.monotonic()
    driver = Driver(folder, TARGET)
    driver.wait()
    if driver.exit_code:
        sys.exit(f"the undisturbed run failed: {folder}/terminal.txt")
    return time.monotonic() - started


def killed_driver(folder: Path, instant_s: float) -> bool:
    """Kill a driver after some seconds; return False if it ended before."""
    driver = Driver(folder, TARGET)
    if driver.wait(instant_s):
        return False
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    return True


def recovery(folder: Path, expected: dict[str, str]) -> str:
    """Start the same command again, and say whether it recovered."""
    driver = Driver(folder, TARGET)
    driver.wait()
    driver.wait_for_orphans()
    if driver.exit_code:
        return f"exit code {driver.exit_code}"
    same = digests(folder, RESULTS) == expected
    return RECOVERED if same else "the results differ"


def main() -> int:
    """Run the trials, and print how many recovered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    adopt_orphans()
    rng = random.Random(arguments.seed)
    n_kills, n_recovered, n_stale = arguments.kills, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        duration_s = run(folder / "undisturbed")
        expected = digests(folder / "undisturbed", RESULTS)
        print(f"undisturbed: {duration_s:.1f} s, {len(expected)} files", flush=True)
        started = time.monotonic()
        for k in range(1, n_kills + 1):
            place = folder / f"{k}"
            while not killed_driver(place, instant_s := rng.uniform(0, duration_s)):
                shutil.rmtree(place)
            how = recovery(place, expected)
            terminal = (place / "terminal.txt").read_text()
            stale = "unlocked: " in terminal
            n_stale += stale
            n_recovered += how == RECOVERED
            left_s = (time.monotonic() - started) / k * (n_kills - k)
            print(
                f"{k}/{n_kills}: killed after {instant_s:.2f} s, "
                f"{'a stale lock' if stale else 'no lock'}, {how}, ETA {clock(left_s)}",
                flush=True,
            )
            if how != RECOVERED:
                print(terminal[-2000:], flush=True)
    print(f"{n_stale} of {n_kills} kills left a stale lock")
    print(f"{n_recovered}/{n_kills}")
    return n_recovered != n_kills


if __name__ == "__main__":
    sys.exit(main())
