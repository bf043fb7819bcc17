"""Score every stage on dev, select and test, and the differences between stages."""

from pathlib import Path

from prefdistill.report.inputs import StageFiles
from prefdistill.running.job import run_job
from prefdistill.settings import EvaluationSettings, ScalingSettings


def main(
    inputs: StageFiles,
    outputs: dict[str, Path],
    teachers: list[str],
    judges: list[str],
    final_model: str,
    trees_weight: float,
    scaling: ScalingSettings,
    evaluation: EvaluationSettings,
) -> None:
    """Gather all predictions, score them, write three tables.

    Args:
        inputs: What the stages predict.
        outputs: Where the score table ``scores``, the paired differences ``steps`` and
            the scored ``predictions`` with their labels go.
        teachers: Names of the teachers.
        judges: Names of the exported models.
        final_model: Name of the model that makes the submission.
        trees_weight: The share of the trees in the final predictions.
        scaling: How the teachers' calibrations were fitted.
        evaluation: Bootstrap draws, their seed, bins of confidence.
    """
    from prefdistill.report.predictions import PREDICTIONS_SCHEMA, predictions_table
    from prefdistill.report.score_table import (
        SCORE_COLUMNS,
        STEP_COLUMNS,
        over_folds,
        paired_steps,
        score_rows,
        step_pairs,
    )
    from prefdistill.report.stages import gather, read_all_labels
    from prefdistill.storage.tables import write_table
    from prefdistill.storage.whole_files import write_csv

    labels = read_all_labels(inputs.folds)
    names = {"teachers": teachers, "judges": judges, "final_model": final_model}
    found = gather(inputs, labels, scaling, **names)
    found += over_folds(found)
    table = predictions_table(found, labels)
    write_table(outputs["predictions"], table, PREDICTIONS_SCHEMA)
    write_csv(outputs["scores"], score_rows(found, labels, evaluation), SCORE_COLUMNS)
    pairs = step_pairs(judges, final_model, is_pooled=trees_weight > 0)
    steps = paired_steps(found, labels, pairs, evaluation)
    write_csv(outputs["steps"], steps, STEP_COLUMNS)


if __name__ == "__main__":
    run_job(snakemake, main)
