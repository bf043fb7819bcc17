"""Kill drivers and jobs at random while the whole workflow runs; compare the results.

Each run makes the reduced DAG in an empty folder with the command of `make run` and its
profile, which does not retry failed jobs. At random instants the driver or a job gets
SIGKILL or SIGTERM, or all get SIGKILL at once. If the driver ends with an error, the
same command is started again until it succeeds. Then ``submission.csv`` and every
adapter must equal those of an undisturbed run, byte for byte. Wasted work is the CPU
time of all processes beyond that of the undisturbed run.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from driving import Driver, adopt_orphans, clock, cpu_seconds, digests, end_all, jobs

TARGET = "results/submission.csv"
COMPARED = (TARGET, "results/**/adapter_model.safetensors")
KINDS = {
    "driver SIGKILL": signal.SIGKILL,
    "driver SIGTERM": signal.SIGTERM,
    "job SIGKILL": signal.SIGKILL,
    "job SIGTERM": signal.SIGTERM,
    "all SIGKILL": signal.SIGKILL,
}
# Errors of the driver in a row that no kill since its start explains.
MAX_FAILURES = 3


@dataclass
class Outcome:
    """The result of a run."""

    folder: Path
    seconds: float = 0.0
    cpu_s: float = 0.0
    n_starts: int = 0
    n_failures: int = 0
    kills: Counter = field(default_factory=Counter)
    digests: dict[str, str] = field(default_factory=dict)
    problem: str | None = None


def kill(kind: str, driver: Driver, rng: random.Random) -> bool:
    """Send the signal of a kind; return False if there is no process for it."""
    victims = sorted(job.pid for job in jobs())
    if kind.startswith("job"):
        victims = [rng.choice(victims)] if victims else []
    elif kind.startswith("driver"):
        victims = [driver.pid]
    else:
        victims.append(driver.pid)
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, KINDS[kind])
    return bool(victims)


def run(folder: Path, seed: int, gaps_s: list[float]) -> Outcome:
    """Make the DAG with a kill after each gap, in CPU seconds of all processes."""
    # CPU seconds spread the kills over the work, however busy the machine is.
    adopt_orphans()
    outcome = Outcome(folder)
    started, cpu_before_s = time.monotonic(), cpu_seconds()
    instants = [cpu_before_s + sum(gaps_s[: k + 1]) for k in range(len(gaps_s))]
    try:
        disturb(outcome, random.Random(seed), instants)
    finally:
        end_all()
    outcome.seconds = time.monotonic() - started
    outcome.cpu_s = cpu_seconds() - cpu_before_s
    outcome.digests = digests(folder, *COMPARED)
    return outcome


def disturb(outcome: Outcome, rng: random.Random, instants: list[float]) -> None:
    """Start the command, and again after each failure; kill at the instants."""
    failures_in_a_row = 0
    while True:
        driver, explained = Driver(outcome.folder, TARGET), False
        outcome.n_starts += 1
        while instants and driver.runs():
            kind = rng.choice(list(KINDS))
            if cpu_seconds() >= instants[0] and kill(kind, driver, rng):
                outcome.kills[kind] += 1
                explained = True
                del instants[0]
            time.sleep(0.1)
        driver.wait()
        if not driver.exit_code:
            return driver.wait_for_orphans()
        failures_in_a_row = 0 if explained else failures_in_a_row + 1
        outcome.n_failures += not explained
        if failures_in_a_row == MAX_FAILURES:
            outcome.problem = f"the command failed {MAX_FAILURES} times by itself"
            return None


def difference(outcome: Outcome, expected: dict[str, str]) -> str | None:
    """Describe what a run did wrong; None if nothing."""
    if outcome.problem:
        return outcome.problem
    files = expected.keys() | outcome.digests.keys()
    other = [f for f in sorted(files) if expected.get(f) != outcome.digests.get(f)]
    return f"differs in {', '.join(other)}" if other else None


def summary(outcomes: list[Outcome], undisturbed_s: float) -> str:
    """Write the counts of kills and starts, and the wasted work."""
    kills = sum((outcome.kills for outcome in outcomes), Counter())
    wasted = [outcome.cpu_s / undisturbed_s - 1 for outcome in outcomes]
    per_kill_s = sum(wasted) * undisturbed_s / max(1, kills.total())
    return (
        f"kills: {kills.total()} ("
        + ", ".join(f"{kind} {kills[kind]}" for kind in KINDS)
        + f"); starts: {sum(o.n_starts for o in outcomes)}; failures with no kill: "
        f"{sum(o.n_failures for o in outcomes)}\n"
        f"wasted work: median {statistics.median(wasted):.0%}, most {max(wasted):.0%} "
        f"of {undisturbed_s:.0f} CPU seconds; {per_kill_s:.1f} CPU seconds per kill"
    )


def undisturbed_runs(
    pool: ProcessPoolExecutor, folder: Path, n_runs: int
) -> tuple[dict[str, str], float]:
    """Run undisturbed, as many at a time as the trials; return digests, CPU seconds."""
    todo = [pool.submit(run, folder / f"undisturbed{k}", 0, []) for k in range(n_runs)]
    outcomes = [done.result() for done in todo]
    expected = outcomes[0].digests
    for outcome in outcomes:
        problem = difference(outcome, expected) if expected else "made no file"
        if problem:
            sys.exit(f"{outcome.folder}: {problem}; see terminal.txt there")
    cpu_s = statistics.mean(outcome.cpu_s for outcome in outcomes)
    print(
        f"undisturbed: {outcomes[0].seconds:.0f} s, {cpu_s:.0f} CPU seconds, "
        f"{len(expected)} files to compare",
        flush=True,
    )
    return expected, cpu_s


def main() -> int:
    """Do the runs, and print how many gave the results of the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=6, help="in each run")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--folder", type=Path, help="for the runs; a temporary one")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    rng = random.Random(options.seed)
    outcomes: list[Outcome] = []
    n_same = 0
    with ProcessPoolExecutor(options.parallel) as pool:
        expected, cpu_s = undisturbed_runs(pool, folder, options.parallel)
        longest_s = 2 * cpu_s / (options.kills + 1)
        started = time.monotonic()
        todo = []
        for k in range(1, options.runs + 1):
            gaps_s = [rng.uniform(0, longest_s) for _ in range(options.kills)]
            todo.append(pool.submit(run, folder / f"{k}", rng.getrandbits(32), gaps_s))
        for done in as_completed(todo):
            outcome = done.result()
            outcomes.append(outcome)
            problem = difference(outcome, expected)
            n_same += not problem
            n_left = options.runs - len(outcomes)
            left_s = (time.monotonic() - started) / len(outcomes) * n_left
            print(
                f"{len(outcomes)}/{options.runs}: {outcome.seconds:.0f} s, "
                f"{outcome.kills.total()} kills, {outcome.n_starts} starts, "
                f"{outcome.cpu_s / cpu_s - 1:+.0%} CPU, {problem or 'identical'}, "
                f"ETA {clock(left_s)}",
                flush=True,
            )
            if problem:
                print(f"  see {outcome.folder}/terminal.txt", flush=True)
            else:
                shutil.rmtree(outcome.folder)
    print(summary(outcomes, cpu_s))
    print(f"{n_same}/{options.runs}")
    if n_same == options.runs and not options.folder:
        shutil.rmtree(folder)
    return n_same != options.runs


if __name__ == "__main__":
    sys.exit(main())
