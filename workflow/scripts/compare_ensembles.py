"""Compare ways to make one model of the folds' students, on test.

Every way gets its own tied scaling, fitted on select, as a judge does: so a way is not
better or worse because it is more or less confident. The reference is the exact mean of
the weight changes, equally weighted and unmerged.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)

REFERENCE = "delta_mean"


def main(
    fold_path: Path,
    ensemble_paths: dict[str, list[Path]],
    student_paths: dict[int, list[Path]],
    table_path: Path,
    text_path: Path,
    views: list[str],
    method: str,
    evaluation: dict[str, Any],
) -> None:
    """Score the ensembles and what the fold students give without one.

    Args:
        fold_path: A fold file, for the labels of select and test.
        ensemble_paths: For each ensemble its predictions of each view.
        student_paths: For each fold its student's predictions of each view.
        table_path: CSV with the columns ``COMPARISON_COLUMNS``; losses in nats.
        text_path: The same in Markdown.
        views: The views of the predictions.
        method: ``calibration.judge``, of the scalings.
        evaluation: The ``evaluation`` settings.
    """
    from prefdistill.report.comparisons import (
        COMPARISON_COLUMNS,
        compare,
        comparison_table,
    )
    from prefdistill.scores.calibration import calibrate_judge
    from prefdistill.scores.fold_weights import best_fold
    from prefdistill.scores.metrics import read_labels
    from prefdistill.scores.views import (
        average_logits,
        average_probabilities,
        read_predictions,
        symmetrise,
    )
    from prefdistill.storage.whole_files import write_csv, write_text

    labels = read_labels(fold_path)
    students = {k: read_predictions(paths, views) for k, paths in student_paths.items()}
    models, equal = list(students.values()), [1.0] * len(students)
    candidates = {
        name: read_predictions(paths, views) for name, paths in ensemble_paths.items()
    }
    candidates["fold_logits"] = average_logits(models, equal)
    candidates["fold_probabilities"] = average_probabilities(models, equal)
    best = best_fold(list(students), models, labels, views)
    logger.info("fold %d has the lowest log loss on select", best)
    candidates["best_fold"] = students[best]

    known = labels.rows(labels.split == "test")
    probs = {}
    for name, scores in candidates.items():
        fit, _ = calibrate_judge(scores, labels, views, method)
        rows = fit.apply(scores.logits[scores.rows_of(known.ids)])
        probs[name] = symmetrise(rows, views)
    draws = {k: evaluation[k] for k in ("n_bootstrap", "seed")}
    table = compare(probs, REFERENCE, known, **draws)
    write_csv(table_path, table, COMPARISON_COLUMNS)
    write_text(text_path, comparison_table(table, "ensemble", REFERENCE) + "\n")


if __name__ == "__main__":
    with run_job(snakemake):
        source, params = snakemake.input, snakemake.params
        ensembles = iter(map(Path, source.ensembles))
        students = iter(map(Path, source.students))
        main(
            fold_path=Path(source.fold),
            ensemble_paths={
                name: [next(ensembles) for _ in params.views]
                for name in params.ensembles
            },
            student_paths={
                fold: [next(students) for _ in params.views] for fold in params.folds
            },
            table_path=Path(snakemake.output.table),
            text_path=Path(snakemake.output.text),
            views=list(params.views),
            method=params.method,
            evaluation=params.evaluation,
        )
