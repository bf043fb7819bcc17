"""Kill the driver at random instants; the same command must recover, each time.

Each trial starts the import, the cleaning and the folds in an empty folder, kills the
driver (SIGKILL, its jobs go on as orphans), starts the same command once more, and
compares every result with those of an undisturbed run.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from driving import Driver, adopt_orphans, clock, digests

TARGET = "folds"


def run(folder: Path) -> float:
    """Run undisturbed and return the seconds that it took."""
    started = time.monotonic()
    driver = Driver(folder, TARGET)
    driver.wait()
    if driver.exit_code:
        sys.exit(f"the undisturbed run failed: {folder}/terminal.txt")
    return time.monotonic() - started


def trial(folder: Path, instant_s: float) -> str | None:
    """Kill a driver after so many seconds and recover; what went wrong, or None."""
    first = Driver(folder, TARGET)
    if first.wait(instant_s):
        return "the driver had ended before it was killed"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = Driver(folder, TARGET)
    second.wait()
    second.wait_for_orphans()
    return f"exit code {second.exit_code}" if second.exit_code else None


def main() -> int:
    """Run the trials, and print how many recovered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    adopt_orphans()
    rng = random.Random(arguments.seed)
    recovered = n_stale = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        duration_s = run(folder / "undisturbed")
        expected = digests(folder / "undisturbed", "results/**/*.*")
        print(f"undisturbed: {duration_s:.1f} s, {len(expected)} files", flush=True)
        started = time.monotonic()
        for k in range(1, arguments.kills + 1):
            place, instant_s = folder / f"{k}", rng.uniform(0, 0.9 * duration_s)
            problem = trial(place, instant_s)
            if not problem and digests(place, "results/**/*.*") != expected:
                problem = "the results differ"
            stale = "unlocked: " in (place / "terminal.txt").read_text()
            n_stale += stale
            recovered += not problem
            left_s = (time.monotonic() - started) / k * (arguments.kills - k)
            print(
                f"{k}/{arguments.kills}: killed after {instant_s:.2f} s, "
                f"{'a stale lock' if stale else 'no lock yet'}, "
                f"{problem or 'recovered'}, ETA {clock(left_s)}",
                flush=True,
            )
            if problem:
                print((place / "terminal.txt").read_text()[-2000:])
    print(f"{n_stale} of {arguments.kills} kills left a stale lock")
    print(f"{recovered}/{arguments.kills}")
    return recovered != arguments.kills


if __name__ == "__main__":
    sys.exit(main())
