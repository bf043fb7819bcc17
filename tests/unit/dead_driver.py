"""A folder as a killed driver leaves it: with Snakemake's lock and its own record."""

import json
import socket
from pathlib import Path
from typing import Any

from prefdistill.pipeline.driver import OWNER
from prefdistill.storage.hosts import BOOT_ID, PID_SPACE


def lock_folder(folder: Path, **owner: Any) -> Path:
    """Lock a folder as Snakemake does, and record its owner, unless none is given."""
    locks = folder / ".snakemake/locks"
    locks.mkdir(parents=True, exist_ok=True)
    (locks / "0.output.lock").write_text("results/submission.csv\n")
    record = {"host": socket.gethostname(), "pid": 1, "started": "2026-01-01"}
    record |= {"boot": BOOT_ID, "space": PID_SPACE, "slurm_job": None, "token": "a1"}
    if owner:
        (folder / OWNER).write_text(json.dumps(record | owner))
    return folder


def locks_of(folder: Path) -> list[Path]:
    """List Snakemake's locks of a folder."""
    return list((folder / ".snakemake/locks").glob("*"))
