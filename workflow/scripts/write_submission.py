"""Write the submission: one row of probabilities per unlabelled pair, Kaggle form."""

import logging
from pathlib import Path

from prefdistill.errors import UserError
from prefdistill.running.job import run_job

logger = logging.getLogger(__name__)


def main(symmetrised: Path, unlabelled: Path, submission: Path) -> None:
    """Write rows in the order of the unlabelled table, ids as in its source file.

    Raises:
        UserError: If there are no unlabelled rows, or one has no sound prediction.
    """
    import numpy as np

    from prefdistill.scores.views import (
        PROBABILITY_COLUMNS,
        SYMMETRISED_SCHEMA,
        columns_of,
    )
    from prefdistill.storage.joining import find_rows
    from prefdistill.storage.tables import TARGET_COLUMNS, read_table
    from prefdistill.storage.whole_files import write_csv_rows

    table = read_table(symmetrised, SYMMETRISED_SCHEMA)
    probs = columns_of(table, PROBABILITY_COLUMNS)
    wanted = read_table(unlabelled, columns=["id"]).column("id").to_pylist()
    if not wanted:
        raise UserError(f"{unlabelled}: no rows to predict; set data.test")
    places = find_rows(table.column("id").to_pylist(), wanted)
    if (places < 0).any():
        missing = wanted[int(np.argmin(places))]
        raise UserError(f"{symmetrised}: lacks row id {missing}")
    chosen = probs[places]
    sound = np.isfinite(chosen).all(axis=1) & (chosen >= 0).all(axis=1)
    sound &= np.abs(chosen.sum(axis=1) - 1) < 1e-6
    if not sound.all():
        worst = wanted[int(np.flatnonzero(~sound)[0])]
        raise UserError(f"{symmetrised}: row id {worst} is not a distribution")
    rows = (
        (name.removeprefix("test:"), *row)
        for name, row in zip(wanted, chosen.tolist(), strict=True)
    )
    n_marked = write_csv_rows(submission, ("id", *TARGET_COLUMNS), rows)
    if n_marked:
        logger.warning(
            "%s: %d ids that a spreadsheet would run got an apostrophe before them",
            submission, n_marked,
        )  # fmt: skip


if __name__ == "__main__":
    run_job(snakemake, main)
