"""Average the logits of the chosen folds' students."""

import logging
from pathlib import Path

from prefdistill.running.job import run_job

logger = logging.getLogger(__name__)


def main(
    students: list[Path],
    weights: Path,
    select: Path | None,
    logits: Path,
    folds: list[int],
) -> None:
    """Join the folds' logits by id and write their weighted mean.

    Args:
        students: The logits of each fold's student.
        weights: The ensemble's ``weights.json``.
        select: A fold file, or None. With a file, only the fold that is best on its
            select rows is used.
        logits: Where the mean goes.
        folds: The folds of ``students``.
    """
    from prefdistill.scores.fold_weights import best_fold, read_weights
    from prefdistill.scores.metrics import read_labels
    from prefdistill.scores.views import average_logits
    from prefdistill.storage.logits import read_logits, write_logits

    models = [read_logits(path) for path in students]
    if select is not None:
        best = best_fold(folds, models, read_labels(select))
        logger.info("fold %d has the lowest log loss on select", best)
        folds, models = [best], [models[folds.index(best)]]
    write_logits(logits, average_logits(models, read_weights(weights, folds)))


if __name__ == "__main__":
    run_job(snakemake, main)
