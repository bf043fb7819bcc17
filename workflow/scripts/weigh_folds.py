"""Write the weight of each fold in the ensemble.

Weights are equal, given, or follow the group-relative advantage of each fold's
student (``weights.advantage_weights``). The reward of a fold is the mean log
probability of the verdicts beyond a baseline's. ``trees`` takes the fold's dev rows and
the surface trees fitted on its train side; ``none`` takes select, which all folds
share, where a baseline common to all would cancel.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdistill.job import run_job

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
    baselines_path: Path | None = None,
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
        baselines_path: ``baselines.parquet``, for the baseline ``trees``.
        views: The views of the predictions.
    """
    from prefdistill.io import write_json
    from prefdistill.weights import fold_weights as normalise

    if fold_weights == "advantage":
        record = weigh_by_advantage(
            folds, advantage, fold_paths, student_paths, baselines_path, views
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
    baselines_path: Path | None,
    views: list[str],
) -> dict[str, Any]:
    """The record of ``weights.json``, with rewards and advantages (nats)."""
    import numpy as np

    from prefdistill.metrics import read_labels
    from prefdistill.stages import from_baselines
    from prefdistill.tta import read_predictions
    from prefdistill.weights import advantage_weights, advantages, fold_reward

    by_fold = {}
    if advantage["baseline"] == "trees":
        by_fold = {
            each.fold: each
            for each in from_baselines(baselines_path)
            if each.stage == "trees" and each.split == "dev"
        }
    split = "dev" if by_fold else "select"
    rewards = []
    for fold, fold_path, paths in zip(folds, fold_paths, student_paths, strict=True):
        labels = read_labels(fold_path)
        known = labels.rows(labels.split == split)
        baseline = by_fold[fold].probs_of(known.ids) if by_fold else None
        scores = read_predictions(paths, views)
        rewards.append(fold_reward(scores, labels, split, views, baseline))
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
            baselines_path=next(map(Path, source.baselines), None),
            views=list(params.views),
        )
