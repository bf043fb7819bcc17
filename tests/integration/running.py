"""Run the real workflow from tests: in a folder of its own, from any checkout."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REDUCED = Path(__file__).with_name("reduced.yaml")
SOURCES = ("workflow", "config", "profiles", "environment.yml")
LINKS = ("prefdistill", "slurm")


def snakemake_command(
    directory: Path,
    *arguments: str,
    overlays: tuple[Path, ...] = (),
    root: Path = ROOT,
    config: Path | None = None,
) -> list[str | Path]:
    """The command that runs Snakemake in ``directory``: flags and targets in any order.

    It runs the reduced demo, or a configuration given.
    """
    configs = [config] if config else [root / "config/demo.yaml", REDUCED]
    return [
        *(sys.executable, "-m", "snakemake"),
        *[each for each in arguments if each.startswith("-")],
        *("--snakefile", root / "workflow/Snakefile"),
        *("--profile", root / "profiles/default", "--directory", directory),
        *("--cores", "2", "--configfile", *configs, *overlays, "--"),
        *[each for each in arguments if not each.startswith("-")],
    ]


def driver_command(directory: Path, *arguments: str, **options) -> list[str | Path]:
    """The command of ``make run`` for the same; start it in a clone's root."""
    _, _, _, *rest = snakemake_command(directory, *arguments, **options)
    return [sys.executable, "-m", "prefdistill", "run", *rest]


def snakemake(
    directory: Path,
    *arguments: str,
    root: Path = ROOT,
    timeout: float | None = None,
    **options,
) -> subprocess.CompletedProcess:
    """Run that command to its end, at most ``timeout`` seconds."""
    return subprocess.run(
        snakemake_command(directory, *arguments, root=root, **options),
        cwd=root, capture_output=True, text=True, check=False, timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def planned(directory: Path, *targets: str, **options) -> Counter:
    """Rules that a dry run would execute, with the number of their jobs."""
    result = snakemake(directory, "--dry-run", *targets, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    text = result.stdout + result.stderr
    if "Nothing to be done" in text:
        return Counter()
    table = text.split("Job stats:")[1].split("total")[0]
    counts = re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE)
    return Counter({rule: int(count) for rule, count in counts})


def checkout(folder: Path) -> Path:
    """A copy of the sources that a test may edit."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy2(source, folder / name)
    for name in LINKS:
        (folder / name).symlink_to(os.readlink(ROOT / name))
    return folder
