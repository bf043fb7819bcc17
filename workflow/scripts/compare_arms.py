"""Compare the arms of an ablation pair by pair, over folds and seeds."""

from pathlib import Path
from typing import Any

from prefdistill.running.job import run_job


def main(
    folds: list[Path],
    predictions: dict[str, list[list[Path]]],
    table: Path,
    page: Path,
    comparisons: list[tuple[str, str]],
    changes: dict[str, dict[str, Any]],
    unclean: list[str],
    evaluation: dict[str, Any],
) -> None:
    """Write one line a comparison and split, and the same as a page to read.

    Args:
        folds: The fold files.
        predictions: For each arm and seed the logits of every fold.
        table: CSV with the columns ``arms.COLUMNS``; losses in nats.
        page: Markdown; its name is the ablation's.
        comparisons: Pairs of arms, before and after.
        changes: Arm to the settings that it changes.
        unclean: Arms that learn from teachers which saw their dev rows.
        evaluation: The ``evaluation`` settings.
    """
    from prefdistill.report.arms import COLUMNS, ablation_page, compare_arms
    from prefdistill.storage.whole_files import write_csv, write_text

    draws = {key: evaluation[key] for key in ("n_bootstrap", "seed")}
    rows = compare_arms(folds, predictions, comparisons, unclean, **draws)
    write_csv(table, rows, COLUMNS)
    n_seeds = len(next(iter(predictions.values())))
    write_text(page, ablation_page(page.stem, rows, changes, n_seeds, len(folds)))


if __name__ == "__main__":
    with run_job(snakemake):
        source, params = snakemake.input, snakemake.params
        files = iter(map(Path, source.predictions))
        main(
            folds=[Path(path) for path in source.folds],
            predictions={
                arm: [
                    [next(files) for _ in source.folds] for _ in range(params.n_seeds)
                ]
                for arm in params.changes
            },
            table=Path(snakemake.output.table),
            page=Path(snakemake.output.page),
            comparisons=list(map(tuple, params.comparisons)),
            changes=params.changes,
            unclean=list(params.unclean),
            evaluation=params.evaluation,
        )
