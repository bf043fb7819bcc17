"""Drop rows that cannot train or score a judge, and count them by reason.

A row stays if its target is exactly one-hot: an argmax would silently turn a row
without a winner into a win for A. Depending on the ``cleaning`` settings, empty rows,
rows with identical answers and duplicates are dropped too. All rows of the test file
stay. ``cleaning.json`` holds the counts.
"""

import logging
from pathlib import Path
from typing import Any

from prefdistill.running.job import run_job
from prefdistill.settings import CleaningSettings

logger = logging.getLogger(__name__)


def log_table(counts: dict[str, Any]) -> None:
    """Log a table of the counts, by reason and source."""
    sources = list(counts["n_in"])
    lines = {
        "rows in": counts["n_in"],
        **counts["dropped"],
        "rows out": counts["n_out"],
    }
    logger.info("%-24s%s", "", "".join(f"{name:>9}" for name in sources))
    for name, row in lines.items():
        cells = "".join(f"{row[source]:>9}" for source in sources)
        logger.info("%-24s%s", name, cells)


def main(
    pairs: Path, imported: Path, clean: Path, report: Path, cleaning: CleaningSettings
) -> None:
    """Write the rows that stay, and the counts of all rows.

    Raises:
        UserError: If no train row stays.
    """
    from prefdistill.data.cleaning import clean_table
    from prefdistill.storage.records import read_json, write_json

    record = read_json(imported)
    counts, repaired = clean_table(pairs, clean, cleaning)
    log_table(counts)
    counts["repaired"] = record["repaired"] | repaired
    counts["helper_columns_removed"] = sorted(
        {name for file in record["files"] for name in file["ignored_columns"]}
    )
    write_json(report, counts)


if __name__ == "__main__":
    run_job(snakemake, main)
