"""Import preference pairs of all sources into one typed parquet file.

The files and Hub data sets of the ``data`` settings are read one after the other, in
bounded memory. What cannot be read without guessing is refused. ``import.json`` counts
rows and repairs by file and names the columns that were not used, among them helper
columns that were derived from the labels.
"""

import logging
from pathlib import Path
from typing import Any

from prefdistill.errors import UserError
from prefdistill.running.job import run_job

logger = logging.getLogger(__name__)


def main(pairs: Path, report: Path, data: dict[str, Any]) -> None:
    """Read all configured inputs, and write the table and the counts."""
    from prefdistill.data.hub_rows import read_hub_rows
    from prefdistill.data.pairs import (
        ImportedFile,
        PairsWriter,
        describe_import,
        list_entries,
        open_parquet_writer,
    )
    from prefdistill.data.readers import read_file_rows
    from prefdistill.storage.records import write_json
    from prefdistill.storage.tables import PAIRS_SCHEMA

    files: list[ImportedFile] = []
    with open_parquet_writer(pairs, PAIRS_SCHEMA) as parquet:
        writer = PairsWriter(parquet)
        for source, entry in list_entries(data):
            is_hub = isinstance(entry, dict)
            counts = ImportedFile(str(entry["hub"] if is_hub else entry), source)
            if is_hub:
                rows = read_hub_rows(entry, source, counts)
            else:
                rows = read_file_rows(Path(entry), source, counts)
            writer.add(rows, counts, integer_id=not is_hub)
            if not counts.n_rows:
                raise UserError(f"{counts.file}: has no data rows; name one that has")
            # The plus drops reasons that were counted zero times.
            counts.repaired = +counts.repaired
            files.append(counts)
            logger.info(
                "%s: %d %s rows, repaired %s, ignored columns %s",
                counts.file, counts.n_rows, source,
                dict(counts.repaired) or "nothing",
                ", ".join(counts.ignored_columns) or "none",
            )  # fmt: skip
    write_json(report, describe_import(files))


if __name__ == "__main__":
    run_job(snakemake, main, online=True)
