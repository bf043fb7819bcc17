"""Score every stage on dev, select and test, and the differences between stages."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from prefdistill.report.stages import StageFiles


def main(
    files: "StageFiles",
    scores: Path,
    steps: Path,
    predictions: Path,
    calibration: dict[str, Any],
    evaluation: dict[str, Any],
    trees_weight: float,
) -> None:
    """Gather all predictions, score them, write the tables.

    Args:
        files: What the stages predict.
        scores: The score table.
        steps: The paired differences.
        predictions: The predictions that were scored, with their labels.
        calibration: The settings of the teachers' calibration.
        evaluation: Number of bootstrap draws, seed, number of bins.
        trees_weight: The share of the trees in the final predictions.
    """
    from prefdistill.report.score_table import (
        PREDICTIONS_SCHEMA,
        SCORE_COLUMNS,
        STEP_COLUMNS,
        over_folds,
        paired_steps,
        predictions_table,
        score_rows,
        step_pairs,
    )
    from prefdistill.report.stages import gather, read_all_labels
    from prefdistill.storage.tables import write_table
    from prefdistill.storage.whole_files import write_csv

    labels = read_all_labels(files.folds)
    found = gather(files, labels, calibration)
    found += over_folds(found)
    write_table(predictions, predictions_table(found, labels), PREDICTIONS_SCHEMA)

    draws = {key: evaluation[key] for key in ("n_bootstrap", "seed")}
    table = score_rows(found, labels, n_bins=evaluation["n_bins"], **draws)
    write_csv(scores, table, SCORE_COLUMNS)
    pairs = step_pairs(list(files.judges), files.final, is_pooled=trees_weight > 0)
    write_csv(steps, paired_steps(found, labels, pairs, **draws), STEP_COLUMNS)


if __name__ == "__main__":
    with run_job(snakemake):
        from prefdistill.report.stages import StageFiles

        main(
            files=StageFiles.of(
                snakemake.input,
                teachers=snakemake.params.teachers,
                judges=snakemake.params.judges,
                final=snakemake.params.final,
            ),
            scores=Path(snakemake.output.scores),
            steps=Path(snakemake.output.steps),
            predictions=Path(snakemake.output.predictions),
            calibration=snakemake.params.calibration,
            evaluation=snakemake.params.evaluation,
            trees_weight=snakemake.params.trees_weight,
        )
