"""Weigh the folds of the ensemble by the rewards of their students.

A fold's reward is its student's mean log probability of the verdicts, minus that of a
baseline:

========= ========= ==============================================================
baseline  rows      compared with
========= ========= ==============================================================
trees     dev       surface trees fitted on the fold's train side
ema       select    the running mean of the student's own weights
none      select    nothing: a baseline common to all folds would cancel
========= ========= ==============================================================
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from prefdistill.report.predictions import from_baselines
from prefdistill.scores.fold_weights import advantage_weights, advantages, fold_reward
from prefdistill.scores.metrics import read_labels
from prefdistill.scores.views import symmetrise
from prefdistill.settings import AdvantageSettings
from prefdistill.storage.logits import read_logits

logger = logging.getLogger(__name__)


def weigh_by_advantage(
    folds: Sequence[int],
    fold_files: Sequence[Path],
    students: Sequence[Path],
    baselines: Sequence[Path],
    advantage: AdvantageSettings,
) -> dict[str, Any]:
    """Compute the weights of the folds from their rewards.

    Args:
        folds: The folds to weigh.
        fold_files: The fold files.
        students: The logits of each fold's student.
        baselines: ``baselines.parquet`` for ``trees``, the logits of each fold's
            averaged student for ``ema``, nothing for ``none``.
        advantage: How rewards become weights.

    Returns:
        The content of ``weights.json``; rewards in nats.

    Raises:
        UserError: If a split has no labelled rows, a baseline lacks a row, or a weight
            is rounded to zero.
    """
    baseline = advantage.baseline
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
    weights = advantage_weights(means, advantage.temperature)
    for fold, reward, weight in zip(folds, rewards, weights, strict=True):
        logger.info(
            "fold %d: reward %.4f [%.4f, %.4f] on %s, weight %.4f",
            fold, reward.mean, reward.low, reward.high, split, weight,
        )  # fmt: skip
    return {
        "folds": folds,
        "weights": weights,
        "method": "advantage",
        **asdict(advantage),
        "split": split,
        "rewards": rewards,
        "advantages": advantages(means),
    }
