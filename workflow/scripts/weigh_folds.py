"""Write the weight of each fold in the ensemble.

Weights are equal, given, or follow the group-relative advantage of each fold's
student (``weights.advantage_weights``). The reward of a fold is the mean log
probability of the verdicts beyond a baseline's. ``trees`` takes the fold's dev rows and
the surface trees fitted on its train side. The others take select, which all folds
share: ``ema`` with the running mean of each student's own weights, ``none`` without a
baseline, as one common to all would cancel.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.running.job import run_job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

logger = logging.getLogger(__name__)


def main(
    folds: list[int],
    fold_weights: str | list[float],
    weights_path: Path,
    advantage: dict[str, Any] | None = None,
    fold_paths: list[Path] | None = None,
    student_paths: list[list[Path]] | None = None,
    baseline_paths: list[Path] | None = None,
    views: list[str] | None = None,
) -> None:
    """Normalise the configured weights, or find them from rewards; write them.

    Args:
        folds: The folds to weigh.
        fold_weights: ``equal``, one number per fold, or ``advantage``, which needs
            all of the following.
        weights_path: ``weights.json``.
        advantage: The settings ``temperature`` and ``baseline``.
        fold_paths: The fold files.
        student_paths: For each fold its student's predictions of each view.
        baseline_paths: ``baselines.parquet`` for the baseline ``trees``, for ``ema``
            each fold's predictions of each view, nothing for ``none``.
        views: The views of the predictions.
    """
    from prefdistill.scores.fold_weights import fold_weights as normalise
    from prefdistill.storage.tables import write_json

    if fold_weights == "advantage":
        record = weigh_by_advantage(
            folds, advantage, fold_paths, student_paths, baseline_paths, views
        )
    else:
        method = fold_weights if isinstance(fold_weights, str) else "given"
        weights = normalise(fold_weights, len(folds))
        record = {"folds": folds, "weights": weights, "method": method}
    write_json(weights_path, record)


def weigh_by_advantage(
    folds: list[int],
    advantage: dict[str, Any],
    fold_paths: list[Path],
    student_paths: list[list[Path]],
    baseline_paths: list[Path],
    views: list[str],
) -> dict[str, Any]:
    """The record of ``weights.json``, with rewards and advantages (nats)."""
    import numpy as np

    from prefdistill.report.stages import from_baselines
    from prefdistill.scores.fold_weights import (
        advantage_weights,
        advantages,
        fold_reward,
    )
    from prefdistill.scores.metrics import read_labels
    from prefdistill.scores.views import read_predictions, symmetrise

    baseline = advantage["baseline"]
    split = "dev" if baseline == "trees" else "select"
    trees = {}
    if baseline == "trees":
        trees = {
            each.fold: each
            for each in from_baselines(baseline_paths[0])
            if each.stage == "trees" and each.split == split
        }
    rewards = []
    for place, (fold, fold_path) in enumerate(zip(folds, fold_paths, strict=True)):
        labels = read_labels(fold_path)
        ids = labels.ids[labels.split == split]
        against = None
        if baseline == "trees":
            against = trees[fold].probs_of(ids)
        elif baseline == "ema":
            files = baseline_paths[place * len(views) : (place + 1) * len(views)]
            mean = read_predictions(files, views)
            against = symmetrise(mean.logits[mean.rows_of(ids)], views)
        scores = read_predictions(student_paths[place], views)
        rewards.append(fold_reward(scores, labels, split, views, against))
    means = np.array([reward.mean for reward in rewards])
    weights = advantage_weights(means, advantage["temperature"])
    for fold, reward, weight in zip(folds, rewards, weights, strict=True):
        logger.info(
            "fold %d: reward %.4f [%.4f, %.4f] on %s, weight %.4f",
            fold, reward.mean, reward.low, reward.high, split, weight,
        )  # fmt: skip
    return {
        "folds": folds,
        "weights": weights,
        "method": "advantage",
        **advantage,
        "split": split,
        "rewards": rewards,
        "advantages": advantages(means),
    }


if __name__ == "__main__":
    with run_job(snakemake):
        source, params = snakemake.input, snakemake.params
        n_views = len(params.views)
        files = [Path(path) for path in source.students]
        main(
            folds=list(params.folds),
            fold_weights=params.fold_weights,
            weights_path=Path(snakemake.output.weights),
            advantage=params.advantage,
            fold_paths=[Path(path) for path in source.fold_files],
            student_paths=[
                files[k : k + n_views] for k in range(0, len(files), n_views)
            ],
            baseline_paths=[Path(path) for path in source.baselines],
            views=list(params.views),
        )
