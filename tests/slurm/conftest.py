"""Make folders for `make slurm-test` on a toy Slurm: a finished run, and copies."""

import json
import os
import shutil
import statistics
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from running import checkout, snakemake
from toy import CONFIGS, REDUCED, TEACHER, Driver

from prefdistill.running.records import record_path

# The long job of these tests: many quick steps, a checkpoint every 50.
LONG = """
teachers:
  llama:
    training: {{epochs: 1000, max_steps: {n_steps}, checkpoint_steps: 50}}
"""
N_STEPS = 400
MORE_THAN_A_MINUTE_S = 110
# The site's hook in these tests records that it ran.
HOOK = 'echo "$SLURM_JOB_ID" >> hook.txt\n'


def pytest_collection_modifyitems(items) -> None:
    if "SLURM_TEST_FOLDER" not in os.environ:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                reason = "needs the toy Slurm: make slurm-test"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Driver:
    """Run the reduced workflow to its end by `snakemake --profile slurm all`."""
    folder = checkout(tmp_path_factory.mktemp("whole"))
    (folder / "profiles/slurm/job_env.sh").write_text(HOOK)
    shutil.copy(REDUCED, folder / "reduced.yaml")
    driver = Driver(folder, "all", "--configfile", *CONFIGS)
    assert driver.finish() == 0, driver.text[-6000:]
    return driver


def copied(finished: Driver, folder: Path) -> Path:
    """Copy the finished run, without its logs, for a test to continue from."""
    logs = shutil.ignore_patterns("logs")
    return Path(shutil.copytree(finished.folder, folder, symlinks=True, ignore=logs))


@pytest.fixture
def start(finished, tmp_path):
    """Return a function that starts the long training job in a copy of the run.

    Its arguments are those of Driver, the number of steps, a text of the profile with
    its replacement, and an input to damage. A second call starts another driver in the
    same folder.
    """
    drivers = []

    def start(
        *arguments: str,
        n_steps: int = N_STEPS,
        profile: tuple[str, str] | None = None,
        spoil: str | None = None,
        **options,
    ) -> Driver:
        folder = tmp_path / "run"
        if not folder.exists():
            copied(finished, folder)
        (folder / "long.yaml").write_text(LONG.format(n_steps=n_steps))
        if profile:
            path = folder / "profiles/slurm/config.yaml"
            path.write_text(path.read_text().replace(*profile))
        if spoil:
            (folder / spoil).write_bytes(b"spoilt")
            # Or the driver would refuse it before any job.
            (folder / record_path(spoil)).unlink()
        configs = ("--configfile", *CONFIGS, "long.yaml")
        driver = Driver(folder, *arguments, *configs, "--", TEACHER, **options)
        drivers.append(driver)
        return driver

    yield start
    for driver in drivers:
        driver.process.kill()


@pytest.fixture(scope="session")
def alone(finished, tmp_path_factory) -> Callable[[int], Path]:
    """Return a function that makes the long job's adapter without Slurm or a stop."""

    @cache
    def make(n_steps: int) -> Path:
        folder = copied(finished, tmp_path_factory.mktemp("expected") / "run")
        (folder / "long.yaml").write_text(LONG.format(n_steps=n_steps))
        overlays = (folder / "reduced.yaml", folder / "long.yaml")
        config = folder / "config/demo.yaml"
        result = snakemake(
            folder, TEACHER, root=folder, config=config, overlays=overlays
        )
        assert result.returncode == 0, result.stderr[-4000:]
        return folder / TEACHER

    return make


@pytest.fixture(scope="session")
def expected(alone) -> Callable[[int], bytes]:
    """Return a function that gives the bytes of that adapter."""
    return lambda n_steps=N_STEPS: alone(n_steps).read_bytes()


@pytest.fixture(scope="session")
def minutes_of_steps(alone) -> int:
    """Estimate the steps that take longer than a minute, a job's shortest limit."""
    curve = (alone(N_STEPS).parent / "train.jsonl").read_text().splitlines()
    seconds = statistics.median(json.loads(line)["seconds"] for line in curve)
    return round(MORE_THAN_A_MINUTE_S / seconds)
