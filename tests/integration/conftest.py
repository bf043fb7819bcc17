"""One finished run of the reduced demo, shared by the tests of the workflow."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest
from running import snakemake


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A folder in which the reduced demo has run to its end; leave it as it is.

    Test processes of one session share the run: the first one makes it. The scripts of
    its jobs are kept in ``.snakemake/scripts``.
    """
    base = tmp_path_factory.getbasetemp()
    in_workers = "PYTEST_XDIST_WORKER" in os.environ
    folder = (base.parent if in_workers else base) / "finished"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            result = snakemake(folder, "all", "--skip-script-cleanup")
            (folder / "terminal.txt").write_text(result.stdout + result.stderr)
            assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
            (folder / "done").touch()
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """The finished run in a folder that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
