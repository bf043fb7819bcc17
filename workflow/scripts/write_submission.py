"""Write the submission: one row of probabilities per unlabelled pair, Kaggle form."""

import csv
from pathlib import Path

from prefdistill.errors import UserError
from prefdistill.running.job import run_job


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
    from prefdistill.storage.whole_files import atomic_path

    table = read_table(symmetrised, SYMMETRISED_SCHEMA)
    probs = columns_of(table, PROBABILITY_COLUMNS)
    wanted = read_table(unlabelled, columns=["id"]).column("id").to_pylist()
    if not wanted:
        raise UserError(f"{unlabelled}: no rows to predict; set data.test")
    rows = find_rows(table.column("id").to_pylist(), wanted)
    if (rows < 0).any():
        missing = wanted[int(np.argmin(rows))]
        raise UserError(f"{symmetrised}: lacks row id {missing}")
    chosen = probs[rows]
    sound = np.isfinite(chosen).all(axis=1) & (chosen >= 0).all(axis=1)
    sound &= np.abs(chosen.sum(axis=1) - 1) < 1e-6
    if not sound.all():
        worst = wanted[int(np.flatnonzero(~sound)[0])]
        raise UserError(f"{symmetrised}: row id {worst} is not a distribution")
    with (
        atomic_path(submission) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as handle,
    ):
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["id", *TARGET_COLUMNS])
        for name, row in zip(wanted, chosen.tolist(), strict=True):
            writer.writerow([name.removeprefix("test:"), *row])


if __name__ == "__main__":
    run_job(snakemake, main)
