"""Pool the runs of folds.test_part into one score of all training rows.

usage: pool_parts.py PART [PART ...] [--other PART [PART ...]] [--out FOLDER]
                     [--scaling FILE]

Each PART is the working folder of a finished run with its own `folds.test_part`. Prints
the scores of every stage on the pooled test rows and the paired differences between
stages; with `--other`, the runs of another configuration on the same rows, also what
each stage gains over the other's. `--out` keeps the tables as CSV.
`--scaling` fits the final judge's scaling on all pooled rows: as the `calibration.json`
of a run on all rows it takes the place of one fitted on `select` alone, and `make run`
makes what it changes.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from prefdistill.errors import UserError
from prefdistill.report.pooling import (
    compare_runs,
    pool_parts,
    pooled_scaling,
    pooled_steps,
)
from prefdistill.report.score_table import SCORE_COLUMNS, STEP_COLUMNS, score_rows
from prefdistill.running.logs import error_line
from prefdistill.storage.tables import write_json
from prefdistill.storage.whole_files import write_csv

SHOWN = [name for name in SCORE_COLUMNS if name not in ("fold", "split")]


def markdown(rows: list[dict], columns: list[str]) -> str:
    """A Markdown table with four decimals and empty cells for None."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.4f}"
        return "" if value is None else str(value)

    lines = [columns, ["---"] * len(columns)]
    lines += [[cell(row[name]) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(
    parts: list[Path],
    other: list[Path],
    out: Path | None,
    scaling: Path | None = None,
    *,
    n_bootstrap: int = 1000,
    seed: int = 0,
    n_bins: int = 15,
) -> None:
    """Print the pooled tables, and write them if asked to."""
    settings = {"n_bootstrap": n_bootstrap, "seed": seed}
    predictions, labels = pool_parts(parts)
    whole = [one for one in predictions if one.fold is None]
    scores = score_rows(whole, labels, n_bins=n_bins, **settings)
    tables = {"scores": (scores, SCORE_COLUMNS)}
    tables["steps"] = pooled_steps(predictions, labels, settings), STEP_COLUMNS
    if other:
        compared = compare_runs(pool_parts(other)[0], predictions, labels, settings)
        tables["other"] = compared, STEP_COLUMNS
    for name, (rows, columns) in tables.items():
        if out is not None:
            write_csv(out / f"{name}.csv", rows, columns)
        if name == "scores":
            averaged = {one.stage: "+".join(one.probs) for one in whole}
            rows = [row for row in rows if row["views"] == averaged[row["stage"]]]
            columns = SHOWN
        print(markdown(rows, list(columns)), end="\n\n")
    if scaling is not None:
        record = pooled_scaling(parts, predictions, labels)
        write_json(scaling, record)
        print(
            f"{scaling}: fitted on {record['n_select']} rows; cross-fitted log loss "
            f"{record['nll_before']:.4f} -> {record['nll_after']:.4f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", type=Path)
    parser.add_argument("--other", nargs="+", type=Path, default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scaling", type=Path)
    given = parser.parse_args()
    try:
        main(given.parts, given.other, given.out, given.scaling)
    except UserError as error:
        sys.exit(f"error: {error_line(error)}")
