"""Have Snakemake run again what was made from other files than those that are there.

Contents decide and file times do not: each record (``running.records``) is compared
with the files of now. So a source that was replaced by an older file is noticed, and a
copy, a touch or a move to another machine reruns nothing. Snakemake itself compares
params and the set of inputs. It keeps them in ``.snakemake/metadata``, which is made a
link to a folder among the records, so that they go wherever the results go.

Imported by the Snakefile, so it stays light: the standard library.
"""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefdistill.errors import UserError
from prefdistill.running.logs import error_line
from prefdistill.running.records import (
    RECORDS,
    not_as_recorded,
    read_record,
    record_path,
    unrecorded_line,
)
from prefdistill.storage.digests import SNAKEMAKE_FOLDER, file_digest
from prefdistill.storage.whole_files import RESULTS

METADATA = SNAKEMAKE_FOLDER / "metadata"
KEPT_METADATA = RECORDS / "snakemake"


def find_stale_files() -> dict[str, str]:
    """Find the recorded files that were made from another content of a source.

    Returns:
        The source that has changed, by file.

    Raises:
        UserError: If a file itself is not the one that was recorded.
    """
    digests: dict[str, str] = {}

    def digest_of(path: str) -> str:
        if path not in digests:
            digests[path] = file_digest(path)
        return digests[path]

    stale = {}
    for place in sorted(RECORDS.rglob("*.json")):
        if place.is_relative_to(KEPT_METADATA):
            continue
        path = str(Path(RESULTS, place.relative_to(RECORDS).with_suffix("")))
        if not os.path.isfile(path):
            continue
        record = read_record(path)
        if record["outputs"].get(path) != digest_of(path):
            raise UserError(error_line(not_as_recorded(path, record)))
        for source, digest in record["inputs"].items():
            if os.path.isfile(source) and digest_of(source) != digest:
                stale[path] = source
                break
    return stale


def follow_contents(dag_class: Any) -> None:
    """Have Snakemake's graph of jobs run stale files' jobs, and name unknown files.

    Args:
        dag_class: ``snakemake.dag.DAG``, whose ``init`` is wrapped: Snakemake has no
            other place for a reason to run a job that is none of its own.
    """
    init = dag_class.init

    async def init_by_content(dag: Any, *args: Any, **options: Any) -> None:
        try:
            stale = find_stale_files()
        except UserError as error:
            sys.exit(f"error: {error}")
        dag.forcefiles.update(stale)
        await init(dag, *args, **options)
        outputs = {str(path) for job in dag.jobs for path in job.output}
        for source in dict.fromkeys(stale.values()):
            made = [path for path in stale if stale[path] == source and path in outputs]
            if made:
                _say(f"{source} has changed: {_and_more(made)} is to be made again")
        unknown = sorted(
            path
            for path in outputs
            if os.path.isfile(path) and not record_path(path).is_file()
        )
        if unknown:
            _say(unrecorded_line(unknown))

    dag_class.init = init_by_content


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _and_more(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def keep_metadata(*, create: bool) -> None:
    """Have Snakemake keep its metadata among the records.

    Args:
        create: Whether to begin it; a dry run only follows what is there.
    """
    with suppress(OSError):  # a file system without links, or read-only
        if METADATA.is_symlink() and not METADATA.exists():
            METADATA.unlink()  # results were removed by hand
        if METADATA.is_symlink() or not (create or KEPT_METADATA.is_dir()):
            return
        # Without this folder, Snakemake takes the metadata for an early version's.
        (SNAKEMAKE_FOLDER / "incomplete").mkdir(parents=True, exist_ok=True)
        if METADATA.is_dir() and not KEPT_METADATA.is_dir():
            KEPT_METADATA.parent.mkdir(parents=True, exist_ok=True)
            METADATA.rename(KEPT_METADATA)
        KEPT_METADATA.mkdir(parents=True, exist_ok=True)
        if METADATA.is_dir():  # of results that were here before
            shutil.rmtree(METADATA)
        METADATA.symlink_to(os.path.relpath(KEPT_METADATA, SNAKEMAKE_FOLDER))
