"""Allow one driver per folder, and recover from a killed one by the same command.

A driver is the Snakemake process that a person starts. Snakemake locks its folder with
files. They stay when the driver is killed, and do not say whether it still lives. So
every driver also holds a kernel lock (flock) on an empty file, from reading the
Snakefile to its end. The kernel releases that lock however the process ends,
and unlike a process id, nothing else can be mistaken for it. A record beside the lock
names the last driver.

Each driver has a random token, which stands in the record and in its jobs' environment:
a job whose token was replaced has lost its driver, and stops (``running.ties``).

``prefdistill run`` cleans up after a dead driver and then becomes Snakemake.
``prefdistill clean`` removes what runs have made, unless one of them still works.
``FOLDER``, ``LOCK`` and ``OWNER`` are relative to the folder that Snakemake works in.

Imported by the Snakefile, so it stays light: YAML and the standard library.
"""

import argparse
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from prefdistill.errors import UserError
from prefdistill.pipeline import config_files
from prefdistill.pipeline.config_files import ConfigFault, read_config_file
from prefdistill.pipeline.surroundings import find_caches, name_user
from prefdistill.running.lock import lock_holder, open_lock
from prefdistill.running.stopping import TERMINAL_SIGNALS, heeded
from prefdistill.running.ties import DRIVER, OWNER, driver_tie
from prefdistill.storage.digests import SNAKEMAKE_FOLDER
from prefdistill.storage.hosts import BOOT_ID, MACHINE_ID, PID_SPACE, has_ended

FOLDER = SNAKEMAKE_FOLDER
LOCK = FOLDER / "prefdistill.lock"
# What runs make; ``FOLDER`` comes last, as it holds the lock.
MADE = (Path("results"), Path("logs"), Path("scratch"), FOLDER)
# Read at once: the Slurm executor deletes it from the driver's environment.
_SLURM_JOB = os.environ.get("SLURM_JOB_ID")

# A dry run holds the lock too, for about this long.
PATIENCE_S = 5
SLURM_PATIENCE_S = 120


def hold_folder() -> IO | None:
    """Take this process's share of the folder's lock; it lasts while the file is open.

    Waits while ``recover`` holds the lock alone.

    Returns:
        The open lock file; None where the file system cannot lock or cannot be written
        to. ``main`` refuses such a file system.
    """
    try:
        FOLDER.mkdir(exist_ok=True)
        handle = _open(LOCK)
        fcntl.flock(handle, fcntl.LOCK_SH)
    except OSError:
        return None
    return handle


def _open(path: Path) -> IO:
    return os.fdopen(open_lock(path), "a+")


def write_owner(root: Path = Path(), *, alone: bool = False, **facts: Any) -> None:
    """Record this process as the folder's driver, and give its jobs their token.

    Two drivers may work in one folder at once, on other targets. So a driver keeps the
    recorded token, unless the recorded driver is known to be dead.

    Args:
        root: The folder that Snakemake works in.
        alone: Whether no other driver lives there.
        **facts: More to record, as JSON holds it.

    Raises:
        OSError: If the record cannot be written.
    """
    former = None if alone else _read_owner(root)
    if former and former["token"] and not has_ended(former["space"], former["pid"]):
        token = former["token"]
    else:
        token = secrets.token_hex(8)
    owner = facts | {
        "host": socket.gethostname(),
        "boot": BOOT_ID,
        "machine": MACHINE_ID,
        "space": PID_SPACE,
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "slurm_job": _SLURM_JOB,
        "token": token,
    }
    temporary = root / f"{OWNER}.{os.getpid()}"
    temporary.write_text(json.dumps(owner) + "\n")
    os.replace(temporary, root / OWNER)
    os.environ[DRIVER] = driver_tie(token, _SLURM_JOB)


def driver_at_work(root: Path = Path()) -> str | None:
    """Describe the driver that lives in a folder; None if none does.

    Call before this process takes its own share of the folder's lock.
    """
    try:
        with _open(root / LOCK) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _words(_read_owner(root))
    except (OSError, UserError):
        return None
    return None


def recover(root: Path = Path()) -> None:
    """Clean up after a dead driver, if there was one, and record this process.

    Args:
        root: The folder that Snakemake works in.

    Raises:
        UserError: If a driver lives, or nobody can tell.
    """
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    with _open(root / LOCK) as handle:
        _lock_alone(handle, root)
        if any((root / FOLDER / "locks").glob("*")):
            owner = _require_dead_owner(root)
            _cancel_slurm_jobs(root)
            _unlock(root)
            print(f"unlocked: {_words(owner)} is dead", file=sys.stderr)
        write_owner(root, alone=True)


def _lock_alone(handle: IO, root: Path) -> None:
    """Lock out all drivers.

    Raises:
        UserError: If one lives, or the file system has no locks.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{root.resolve()} is in use: {_words(_read_owner(root))} is at "
                    "work there; wait for its end, or stop it, and start again"
                ) from None
            time.sleep(0.1)
        except OSError as error:
            raise UserError(
                f"{root / LOCK}: cannot be locked ({error.strerror}); run snakemake "
                "itself instead of make, and snakemake --unlock after a kill"
            ) from error


def _read_owner(root: Path) -> dict | None:
    """Read the record; None if there is none, or if it is not one of this module's."""
    try:
        owner = json.loads((root / OWNER).read_text(encoding="utf-8"))
        strings = ("host", "started", "boot", "machine", "space", "slurm_job", "token")
        owner = {name: owner.get(name) for name in (*strings, "pid")}
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    texts = [owner[name] for name in strings if owner[name] is not None]
    sound = (
        isinstance(owner["pid"], int)
        and owner["pid"] > 0
        and None not in (owner["host"], owner["started"])
        and all(isinstance(text, str) and text.isprintable() for text in texts)
    )
    return owner if sound else None


def _words(owner: dict | None) -> str:
    if owner is None:
        return "a driver of which nothing is recorded"
    job = f", Slurm job {owner['slurm_job']}" if owner["slurm_job"] else ""
    return (
        f"a driver on {owner['host']} (pid {owner['pid']}{job}, since "
        f"{owner['started']})"
    )


def _require_dead_owner(root: Path) -> dict:
    """Return the record of the driver that left Snakemake's lock behind.

    Call while this process holds the folder's lock alone. So no driver under this
    kernel lives, in whatever container. If the file system shares locks between hosts,
    then none lives on any host; but not every file system shares them.

    Raises:
        UserError: If it is not known to be dead.
    """
    owner, host = _read_owner(root), socket.gethostname()
    if owner is None:
        raise UserError(
            f"{root.resolve()} is locked, and nothing says by whom; if no Snakemake "
            f"works there, on {host} or another host: make unlock"
        )
    if owner["boot"] == BOOT_ID:
        return owner
    if owner["machine"] and owner["machine"] == MACHINE_ID:  # before its last boot
        return owner
    if owner["slurm_job"] and _has_left(owner["slurm_job"]):
        return owner
    raise UserError(
        f"{root.resolve()} is locked by {_words(owner)}, which {host} cannot ask; if "
        "it is dead: make unlock"
    )


def _has_left(job: str) -> bool:
    """Tell whether a Slurm job has ended, or is this job after its requeue."""
    if job == os.environ.get("SLURM_JOB_ID"):
        return True
    listed = _squeue("--format=%A")
    return listed is not None and job not in listed


def _squeue(*options: str) -> list[str] | None:
    """Return lines of ``squeue``; None if there is no such command or it fails."""
    if shutil.which("squeue") is None:
        return None
    done = subprocess.run(
        ["squeue", "--noheader", *options], capture_output=True, text=True, check=False
    )
    return None if done.returncode else done.stdout.splitlines()


def _slurm_jobs(root: Path) -> list[str] | None:
    """List the jobs that this user's drivers submitted there; None if unknown."""
    lines = _squeue(f"--user={os.getuid()}", "--format=%i|%k|%Z")
    if lines is None:
        return None
    return [
        job
        for job, comment, folder in (line.split("|", 2) for line in lines)
        if comment.startswith("rule_") and Path(folder).resolve() == root.resolve()
    ]


def _cancel_slurm_jobs(root: Path) -> None:
    """Cancel the jobs of a dead driver; a training saves its state and ends.

    Raises:
        UserError: If a job is still there after two minutes.
    """
    jobs = _slurm_jobs(root)
    if not jobs:
        return
    print(
        f"cancelling {len(jobs)} Slurm jobs of the dead driver: {' '.join(jobs)}",
        file=sys.stderr,
    )
    subprocess.run(["scancel", *jobs], check=False)
    deadline = time.monotonic() + SLURM_PATIENCE_S
    while _slurm_jobs(root) != []:
        if time.monotonic() > deadline:
            raise UserError(
                f"Slurm jobs {' '.join(jobs)} of a dead driver do not end; start again "
                "when squeue no longer lists them"
            )
        time.sleep(1)


def _unlock(root: Path) -> None:
    from snakemake.persistence.file import FilePersistence

    FilePersistence(path=(root / FOLDER).resolve()).cleanup_locks()


def clean(arguments: Sequence[str], prog: str) -> None:
    """Run ``prefdistill clean``: remove what runs have made.

    Raises:
        UserError: If a driver or a job of the folder lives, or nobody can tell.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Remove results, logs, scratch and .snakemake, unless a driver or "
        "a job works there.",
        epilog=f"example: {prog} --directory runs/demo",
    )
    parser.add_argument(
        "-d", "--directory", type=Path, default=Path(), metavar="FOLDER",
        help="the folder of the runs (here)",
    )  # fmt: skip
    root = parser.parse_args(arguments).directory
    if not any(os.path.lexists(root / name) for name in MADE):
        return
    (root / FOLDER).mkdir(exist_ok=True)
    with _open(root / LOCK) as handle:
        _lock_alone(handle, root)
        if any((root / FOLDER / "locks").glob("*")):
            _require_dead_owner(root)
        _require_no_jobs(root)
        for name in MADE:
            _remove(root / name)


def _require_no_jobs(root: Path) -> None:
    """Check that no job of the folder runs or waits in Slurm's queue.

    Raises:
        UserError: If one does.
    """
    alive = [f"Slurm job {job}" for job in _slurm_jobs(root) or []]
    for path in sorted((root / "logs").glob("*/.*.lock")):
        holder = lock_holder(path)
        if holder is not None:
            name = f"{path.parent.name} {path.name[1:].removesuffix('.lock')}"
            alive.append(f"job {name} (host and pid: {holder})")
    if alive:
        more = f" and {len(alive) - 3} more" if len(alive) > 3 else ""
        raise UserError(
            f"{root.resolve()} is in use: {', '.join(alive[:3])}{more}; wait for the "
            "end or stop them, and start again"
        )


def _remove(path: Path) -> None:
    """Remove a folder with all that it holds; of a link, only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_command(arguments: Sequence[str], prog: str, description: str) -> Path:
    """Check the configuration files of a Snakemake command, and return its folder.

    They are checked here because Snakemake reads them before the Snakefile can.

    Args:
        arguments: Targets and options of Snakemake; ``--help`` prints and exits.
        prog: The command's name, for its help.
        description: What it does, for its help.

    Raises:
        UserError: If a configuration file is missing or is not YAML.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [-h] [target ...] [option of Snakemake ...]",
        description=description,
        epilog="Every option of Snakemake is allowed: see `snakemake --help`.\n\n"
        f"example: {prog} all --configfile config/demo.yaml --cores 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--configfile", "--configfiles", nargs="+", default=[], metavar="FILE",
        help="configuration files; a later one overrides an earlier one",
    )  # fmt: skip
    parser.add_argument(
        "-d", "--directory", type=Path, default=Path(), metavar="FOLDER",
        help="where Snakemake works (here)",
    )  # fmt: skip
    options = parser.parse_known_args(arguments)[0]
    try:
        for path in options.configfile:
            read_config_file(path)
    except ConfigFault as fault:
        raise UserError(str(fault)) from fault
    return options.directory


def main(arguments: Sequence[str], prog: str) -> NoReturn:
    """Run ``prefdistill run``: recover in the command's folder, then become Snakemake.

    A dry run recovers nothing.

    Raises:
        UserError: If a configuration file cannot be used, or ``recover`` refuses.
    """
    folder = read_command(
        arguments,
        prog,
        "Run Snakemake. Where its last driver was killed, release the lock and cancel "
        "its Slurm\njobs first. A folder where another driver works is left alone.",
    )
    if not any(re.fullmatch(r"--dry-?run|-\w*n\w*", each) for each in arguments):
        recover(folder)
    name_user()
    find_caches(folder)
    # Until the Snakefile handles them (``stops``): Snakemake's imports would end with a
    # traceback.
    signal.pthread_sigmask(signal.SIG_BLOCK, heeded(TERMINAL_SIGNALS))
    # Through this file, as Snakemake would run code that a configuration holds. -P: the
    # file's folder is no place to import from.
    started = [sys.executable, "-P", config_files.__file__]
    os.execv(sys.executable, [*started, *arguments])
