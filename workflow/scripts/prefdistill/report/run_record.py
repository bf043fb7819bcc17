"""Record a run: time and GPU hours by rule, versions, and digests of its files.

Times come from Snakemake's timing files. No rule reads them as input, so a deleted file
makes no job run again; the report then shows less.
"""

import csv
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdistill.running.records import RECORDS, package_versions
from prefdistill.storage.digests import file_digest
from prefdistill.storage.records import read_json

# A job's log has this line once its model is on a GPU (models/loading.py).
ON_GPU = re.compile(r"computing in \S+ on cuda")
RULE_COLUMNS = ("rule", "jobs", "hours", "longest job", "CPU hours", "GPU hours", "GB")


@dataclass(frozen=True)
class JobTime:
    """The time and memory of a finished job, from its timing file.

    Attributes:
        rule: Its rule.
        hours: Wall-clock hours of its last run.
        cpu_hours: CPU hours of all its processes.
        gpu_hours: Wall-clock hours times GPUs; 0 on the CPU.
        peak_gb: Peak resident memory in GB.
    """

    rule: str
    hours: float
    cpu_hours: float
    gpu_hours: float
    peak_gb: float


def read_times(benchmarks: Path, logs: Path, gpus: Mapping[str, int]) -> list[JobTime]:
    """Read the timing files of all rules, sorted by path.

    Args:
        benchmarks: Folder of ``{rule}/{job}.tsv``.
        logs: Folder of ``{rule}/{job}.log``, which say whether a GPU was used.
        gpus: Number of GPUs by model. A job's name begins with its teacher; a job with
            another name is the student's.
    """
    times = []
    for path in sorted(benchmarks.glob("*/*.tsv")):
        with open(path, encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle, delimiter="\t"))
        if not rows:
            continue
        rule, row = path.parent.name, rows[-1]
        # The timing file does not say whether a GPU was used, so ask the log.
        log = logs / rule / f"{path.stem}.log"
        used = log.exists() and ON_GPU.search(log.read_text("utf-8", "replace"))
        n_gpus = gpus.get(path.stem.partition(".")[0], gpus["student"]) if used else 0
        hours = _number(row["s"]) / 3600
        times.append(
            JobTime(
                rule,
                hours,
                _number(row["cpu_time"]) / 3600,
                n_gpus * hours,
                _number(row["max_rss"]) / 1000,
            )
        )
    return times


def _number(cell: str) -> float:
    """Parse a cell of a timing file; NA or -, too short to measure, is 0."""
    try:
        return float(cell)
    except ValueError:
        return 0.0


def rule_rows(times: Iterable[JobTime]) -> list[tuple[Any, ...]]:
    """Sum the jobs by rule, the longest rule first, and in all: ``RULE_COLUMNS``."""
    by_rule: dict[str, list[JobTime]] = {}
    for time in times:
        by_rule.setdefault(time.rule, []).append(time)
    rows = [_sum(rule, jobs) for rule, jobs in by_rule.items()]
    rows.sort(key=lambda row: -row[2])
    everything = [job for jobs in by_rule.values() for job in jobs]
    return [*rows, _sum("all", everything)] if rows else []


def _sum(name: str, jobs: list[JobTime]) -> tuple[Any, ...]:
    return (
        name,
        len(jobs),
        sum(job.hours for job in jobs),
        max(job.hours for job in jobs),
        sum(job.cpu_hours for job in jobs),
        sum(job.gpu_hours for job in jobs),
        max(job.peak_gb for job in jobs),
    )


def read_versions(sources: Path) -> dict[str, str]:
    """Look up the versions of sources, Python, computing packages, and system.

    Args:
        sources: A folder of the workflow's checkout.
    """
    versions = {"sources": _commit(sources)} | package_versions()
    return versions | {"system": platform.platform()}


def _commit(folder: Path) -> str:
    """Describe the commit of a checkout, and whether files differ from it."""
    command = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "no git check-out"
    return done.stdout.strip()


def mixed_versions(records: Path = RECORDS) -> list[tuple[str, str, int]]:
    """List the packages of which the run's files were made with several versions.

    Args:
        records: Folder of the files' records (``running.records``).

    Returns:
        Package, version and number of files that were made with it.
    """
    counts: dict[str, Counter[str]] = {}
    for path in records.rglob("*.json"):
        for name, version in read_json(path).get("packages", {}).items():
            counts.setdefault(name, Counter())[version] += 1
    return [
        (name, version, n)
        for name, versions in sorted(counts.items())
        for version, n in sorted(versions.items())
        if len(versions) > 1
    ]


def file_digests(paths: Iterable[Path]) -> dict[str, str]:
    """Compute the SHA-256 of each file, by its path."""
    return {str(path): file_digest(path) for path in paths}
