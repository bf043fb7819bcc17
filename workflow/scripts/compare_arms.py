"""Compare the arms of an ablation pair by pair, over folds and seeds."""

from pathlib import Path
from typing import Any

from prefdistill.running.job import run_job
from prefdistill.settings import EvaluationSettings


def main(
    folds: list[Path],
    predictions: list[Path],
    table: Path,
    page: Path,
    comparisons: list[list[str]],
    changes: dict[str, dict[str, Any]],
    unclean: list[str],
    evaluation: EvaluationSettings,
) -> None:
    """Write one line per comparison and split, and the same as a page to read.

    Args:
        folds: The fold files.
        predictions: Logits by arm, seed and fold; the fold changes fastest.
        table: Where the CSV with the columns ``comparisons.COLUMNS`` goes.
        page: Where the Markdown page goes; its name is the ablation's.
        comparisons: Pairs of arms, before and after.
        changes: Arm to the settings that it changes.
        unclean: Arms that learn from teachers which saw their dev rows.
        evaluation: Bootstrap draws and their seed.
    """
    from prefdistill.report.comparisons import (
        COLUMNS,
        ablation_page,
        by_arm,
        compare_arms,
    )
    from prefdistill.storage.whole_files import write_csv, write_text

    grouped = by_arm(predictions, list(changes), len(folds))
    rows = compare_arms(folds, grouped, comparisons, unclean, evaluation)
    write_csv(table, rows, COLUMNS)
    n_seeds = len(next(iter(grouped.values())))
    write_text(page, ablation_page(page.stem, rows, changes, n_seeds, len(folds)))


if __name__ == "__main__":
    run_job(snakemake, main)
