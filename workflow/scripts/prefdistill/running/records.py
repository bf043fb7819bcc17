"""Check what a job reads, and record beside its results what they were made from.

Each file of results has a record of the same path below ``results/records``. It holds
the rule, its params, the SHA-256 of every file that the job read and wrote, and the
versions of the packages that computed. So a record goes wherever the results go.

A job compares each file that it reads with the file's record, and that record with
those of the files behind it: in all of them, a path stands for one content. A file of
another fold or run, an edited one, or one whose source was replaced is refused in one
line. At its end a job looks again: files, code and configuration must be those that it
began with, or it fails and Snakemake deletes its outputs.

Imported by the Snakefile, so it stays light: the standard library.
"""

import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from prefdistill.errors import DamagedFile, UserError
from prefdistill.running.code_digests import SCRIPTS, code_digest, forget_code
from prefdistill.running.logs import JOB_LOGGER
from prefdistill.storage.digests import SNAKEMAKE_FOLDER, file_digest
from prefdistill.storage.whole_files import MANIFEST, RESULTS, reading, write_text

logger = logging.getLogger(JOB_LOGGER)

RECORDS = Path(RESULTS, "records")
# What a driver began with; each of its jobs compares.
FROZEN = SNAKEMAKE_FOLDER / "prefdistill.run.json"
PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "gptqmodel", "accelerate",
    "safetensors", "tokenizers", "numpy", "scipy", "scikit-learn", "pyarrow",
    "snakemake", "snakemake-executor-plugin-slurm",
)  # fmt: skip
_AGAIN = "start the run again, so that what ran is what is recorded"


def package_versions() -> dict[str, str]:
    """Look up the versions of Python and of the packages that compute."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def record_path(path: str | Path) -> Path | None:
    """Name the record of a file; None if the file is not one of results."""
    parts = Path(path).parts
    if len(parts) < 2 or parts[0] != RESULTS or ".." in parts:
        return None
    return RECORDS.joinpath(*parts[1:-1], f"{parts[-1]}.json")


def read_record(path: str | Path) -> dict[str, Any] | None:
    """Read the record of a file; None if it has none.

    Returns:
        ``rule``, ``params``, ``packages``, and ``inputs`` and ``outputs``: SHA-256 by
        path.

    Raises:
        DamagedFile: If the record is not one.
    """
    place = record_path(path)
    if place is None or not place.is_file():
        return None
    with reading(place, "a record"):
        record = json.loads(place.read_text(encoding="utf-8"))
        for part in (record["inputs"], record["outputs"]):
            if not all(isinstance(each, str) for each in part.values()):
                raise ValueError("a digest is not text")
        return record


def listed_files(manifest: Path) -> dict[str, str]:
    """List the files of a base model that its manifest names: SHA-256 by path.

    Raises:
        DamagedFile: If it is not a manifest, or names files outside its folder.
    """
    with reading(manifest, "a base model's manifest"):
        content = json.loads(manifest.read_text(encoding="utf-8"))
        folder = manifest.parent / content["path"]
        for name in content["files"]:
            if Path(name).name != name:
                raise ValueError(f"{name!r} is not a file name")
        return {
            str(folder / name): entry["sha256"]
            for name, entry in content["files"].items()
        }


def read_digests(paths: Iterable[str | Path]) -> dict[str, str]:
    """Hash files, and those that a manifest among them lists; check the listed ones.

    Raises:
        DamagedFile: If a listed file is not the one that its manifest records.
    """
    digests = {}
    for path in map(str, paths):
        digests[path] = file_digest(path)
        if Path(path).name != MANIFEST:
            continue
        for name, recorded in listed_files(Path(path)).items():
            if not Path(name).is_file():
                raise DamagedFile(path, f"lists {name}, which is missing")
            digests[name] = file_digest(name)
            if digests[name] != recorded:
                raise DamagedFile(
                    path, f"lists {name}, which has changed since (SHA-256 differs)"
                )
    return digests


def check_records(digests: Mapping[str, str]) -> None:
    """Check files against their records, and these against the records behind them.

    Args:
        digests: SHA-256 of each file by path.

    Raises:
        DamagedFile: If a file is not the one that was recorded, or was made from
            another content of a file than stands there now.
    """
    read = cache(read_record)
    known = dict(digests)
    todo, seen, unrecorded = list(digests), set(digests), []
    while todo:
        path = todo.pop()
        record = read(path)
        if record is None:
            beside_manifest = (Path(path).parent / MANIFEST).is_file()
            if path in digests and record_path(path) and not beside_manifest:
                unrecorded.append(path)
            continue
        wrote = record["outputs"].get(path)
        if wrote is None or (path in digests and wrote != digests[path]):
            raise not_as_recorded(path, record)
        for source, digest in record["inputs"].items():
            behind = read(source)
            now = behind["outputs"].get(source, digest) if behind else digest
            if known.setdefault(source, now) != digest:
                raise DamagedFile(
                    path, f"was made from another {source} than the one that is there"
                )
            if source not in seen:
                seen.add(source)
                todo.append(source)
    if unrecorded:
        logger.warning("%s", unrecorded_line(unrecorded))


def not_as_recorded(path: str, record: Mapping[str, Any]) -> DamagedFile:
    """Build the error for a file that is not the one that its rule wrote."""
    rule = record.get("rule")
    return DamagedFile(path, f"is not the file that rule {rule} wrote there (SHA-256)")


def unrecorded_line(paths: Sequence[str]) -> str:
    """Say that files have no record, and what that means."""
    return (
        f"files without a record of what they were made from: {len(paths)}, such as "
        f"{paths[0]}; they are taken as they are, though data, settings or code may "
        "have changed since; delete those that should be made again"
    )


def freeze(config: Mapping[str, Any]) -> None:
    """Write what a driver begins with: the digests of its configuration and code."""
    scripts = sorted(path.name for path in SCRIPTS.glob("*.py"))
    frozen = {
        "config": config_digest(config),
        "code": {name: code_digest(name) for name in scripts},
    }
    write_text(FROZEN, json.dumps(frozen, indent=1) + "\n")


def config_digest(config: Mapping[str, Any]) -> str:
    """Hash a configuration, whatever the order of its keys."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class JobRecord:
    """Check and record one job.

    Args:
        job: The script's ``snakemake`` object.
    """

    def __init__(self, job: Any) -> None:
        self.job = job
        self.inputs: dict[str, str] = {}

    def begin(self) -> None:
        """Check inputs, code and configuration; call with the job's lock held.

        Raises:
            UserError: If one of them is not what it should be.
        """
        for path in map(record_path, map(str, self.job.output)):
            if path is not None:  # a job that is killed leaves none
                path.unlink(missing_ok=True)
        self._check_code()
        self.inputs = read_digests(self.job.input)
        check_records(self.inputs)

    def end(self) -> None:
        """Check that nothing has changed meanwhile, and write the records.

        Raises:
            UserError: If something has.
        """
        self._check_code()
        for path, digest in self.inputs.items():
            if not os.path.isfile(path) or file_digest(path) != digest:
                raise UserError(f"{path}: was changed while the job read it; {_AGAIN}")
        try:
            outputs = {str(path): file_digest(path) for path in self.job.output}
        except FileNotFoundError as error:  # Snakemake deletes them for another copy
            logger.warning("%s: was deleted; nothing is recorded", error.filename)
            return
        read = dict(self.inputs)
        for path in outputs:
            if Path(path).name == MANIFEST:  # of files that the job found or fetched
                read |= {k: v for k, v in read_digests([path]).items() if k != path}
        record = {
            "rule": getattr(self.job, "rule", None),
            "params": dict(self.job.params.items()),
            "packages": package_versions(),
            "inputs": {k: v for k, v in read.items() if k not in outputs},
            "outputs": outputs,
        }
        text = json.dumps(record, indent=1, sort_keys=True, default=str) + "\n"
        for path in outputs:
            place = record_path(path)
            if place is not None:
                write_text(place, text)

    def _check_code(self) -> None:
        """Check that code and configuration are those of the driver and of the params.

        Raises:
            UserError: If they are not.
        """
        script, frozen = _script(), _read_frozen()
        expected = dict(self.job.params.items()).get("code")
        if script is not None and expected is not None:
            now = _code_now(script)
            if now != expected or frozen.get("code", {}).get(script, now) != now:
                raise UserError(
                    f"{script}: it or code that it uses has changed since the driver "
                    f"started; {_AGAIN}"
                )
        config = getattr(self.job, "config", None)
        if config and frozen.get("config", config_digest(config)) != config_digest(
            config
        ):
            raise UserError(
                f"the configuration has changed since the driver started; {_AGAIN}"
            )


def _script() -> str | None:
    """Name this process's script; None if it is none of the workflow's."""
    # Snakemake runs a copy, in which `__file__` names the original.
    path = getattr(sys.modules["__main__"], "__file__", None)
    name = Path(path).name if path else None
    return name if name and (SCRIPTS / name).is_file() else None


def _code_now(script: str) -> str | None:
    """Hash a script's code as it is on disk now; None if it cannot be read."""
    forget_code()
    try:
        return code_digest(script)
    except (OSError, SyntaxError, ValueError):
        return None


@cache
def _read_frozen() -> dict[str, Any]:
    """Read what the driver began with; empty for a job that no driver started."""
    if not FROZEN.is_file():
        return {}
    with reading(FROZEN, "the record of a driver"):
        return json.loads(FROZEN.read_text(encoding="utf-8"))
