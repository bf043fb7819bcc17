"""Average the logits of the chosen folds' students."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(
    prediction_paths: list[Path],
    weights_path: Path,
    select_path: Path | None,
    output_paths: list[Path],
    folds: list[int],
    views: list[str],
) -> None:
    """Join the folds' predictions by id and write their weighted mean.

    Args:
        prediction_paths: One file per fold and view, the views of a fold together.
        weights_path: The ensemble's ``weights.json``.
        select_path: A fold file; if given, only the fold that is best on its select
            rows is used.
        output_paths: One file per view.
        folds: The folds of ``prediction_paths``.
        views: The views of ``prediction_paths`` and ``output_paths``.
    """
    from prefdistill.scores.fold_weights import best_fold, read_weights
    from prefdistill.scores.metrics import read_labels
    from prefdistill.scores.views import average_logits, read_predictions, write_views

    models = {
        fold: read_predictions(
            prediction_paths[place * len(views) : (place + 1) * len(views)], views
        )
        for place, fold in enumerate(folds)
    }
    if select_path is not None:
        best = best_fold(folds, list(models.values()), read_labels(select_path), views)
        logger.info("fold %d has the lowest log loss on select", best)
        models = {best: models[best]}
    weights = read_weights(weights_path, list(models))
    averaged = average_logits(list(models.values()), weights)
    write_views(output_paths, averaged)


if __name__ == "__main__":
    with run_job(snakemake):
        main(
            prediction_paths=[Path(path) for path in snakemake.input.predictions],
            weights_path=Path(snakemake.input.weights),
            select_path=next(map(Path, snakemake.input.select), None),
            output_paths=[Path(path) for path in snakemake.output],
            folds=list(snakemake.params.folds),
            views=list(snakemake.params.views),
        )
