"""Rewards of the folds' students, and the ensemble's weights that follow from them.

The reward of a fold is the mean log probability of the verdicts beyond a baseline's.
``trees`` takes the fold's dev rows and the surface trees fitted on its train side. The
others take select, which all folds share: ``ema`` with the running mean of each
student's own weights, ``none`` without a baseline, as one common to all would cancel.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefdistill.report.stages import from_baselines
from prefdistill.scores.fold_weights import advantage_weights, advantages, fold_reward
from prefdistill.scores.metrics import read_labels
from prefdistill.scores.views import symmetrise
from prefdistill.storage.logits import read_logits

logger = logging.getLogger(__name__)


def weigh_by_advantage(
    folds: Sequence[int],
    fold_files: Sequence[Path],
    students: Sequence[Path],
    baselines: Sequence[Path],
    advantage: Mapping[str, Any],
) -> dict[str, Any]:
    """Find the weights of the folds from their rewards, in nats.

    Args:
        folds: The folds to weigh.
        fold_files: Their rows.
        students: The logits of each fold's student.
        baselines: ``baselines.parquet``, each fold's averaged student, or nothing, as
            ``advantage`` says.
        advantage: The settings ``temperature`` and ``baseline``.

    Returns:
        The content of ``weights.json``.
    """
    baseline = advantage["baseline"]
    split = "dev" if baseline == "trees" else "select"
    trees = {}
    if baseline == "trees":
        trees = {
            each.fold: each
            for each in from_baselines(baselines[0])
            if each.stage == "trees" and each.split == split
        }
    rewards = []
    for place, (fold, path) in enumerate(zip(folds, fold_files, strict=True)):
        labels = read_labels(path)
        ids = labels.ids[labels.split == split]
        against = None
        if baseline == "trees":
            against = trees[fold].probs_of(ids)
        elif baseline == "ema":
            mean = read_logits(baselines[place])
            against = symmetrise(mean.logits[mean.rows_of(ids)], mean.views)
        scores = read_logits(students[place])
        rewards.append(fold_reward(scores, labels, split, against))
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
