"""Weigh the folds of the ensemble, and choose a single fold."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import softmax

from prefdistill.errors import UserError
from prefdistill.scores.metrics import (
    Interval,
    Labels,
    group_bootstrap,
    log_loss,
    row_log_loss,
)
from prefdistill.scores.views import symmetrise
from prefdistill.storage.logits import Logits
from prefdistill.storage.records import read_json
from prefdistill.storage.whole_files import reading


def normalise_weights(setting: str | Sequence[float], n_folds: int) -> np.ndarray:
    """Normalise configured weights to sum to one, ``(n_folds,)`` float64.

    Args:
        setting: ``equal``, or one positive number per fold.
        n_folds: Number of folds.

    Raises:
        UserError: If the list has another length, or a weight is not positive.
    """
    if isinstance(setting, str):
        if setting != "equal":
            raise UserError(f"ensemble.fold_weights: {setting!r} is not known")
        return np.full(n_folds, 1 / n_folds)
    weights = np.array(setting, dtype=np.float64)
    if weights.shape != (n_folds,):
        raise UserError(
            f"ensemble.fold_weights: {len(setting)} weights for {n_folds} folds"
        )
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UserError("ensemble.fold_weights: every weight must be positive")
    return weights / weights.sum()


def read_weights(path: Path, folds: Sequence[int]) -> list[float]:
    """Read the weights of some folds, in their order, from ``weights.json``.

    Raises:
        UserError: If a fold has no weight, or the weights do not sum to one.
    """
    record = read_json(path, ["folds", "weights"])
    with reading(path, "weights of the folds"):
        weights = [float(weight) for weight in record["weights"]]
        weight_of = dict(zip(record["folds"], weights, strict=True))
        if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
            raise ValueError(f"{weights} are not shares of one")
        missing = [fold for fold in folds if fold not in weight_of]
        if missing:
            raise ValueError(f"fold {missing[0]} is not in folds {record['folds']}")
    return [weight_of[fold] for fold in folds]


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Compute group-relative advantages ``K / (K - 1) * (r_k - mean r)``, ``(K,)``.

    An advantage is a fold's reward minus the mean reward of the *other* folds (RLP,
    arXiv 2510.01265). Advantages sum to zero, so a constant in all rewards cancels.

    Args:
        rewards: ``(K,)`` float64, K at least 2.
    """
    n_folds = len(rewards)
    # K / (K - 1) takes a fold's own reward out of the mean.
    return n_folds / (n_folds - 1) * (rewards - rewards.mean())


def advantage_weights(rewards: np.ndarray, temperature: float) -> np.ndarray:
    """Compute weights ``w_k`` proportional to ``exp(A_k / temperature)``, ``(K,)``.

    They sum to one and are all positive. Only differences between rewards count: the
    best fold weighs most even if all rewards are negative.

    Args:
        rewards: ``(K,)`` float64, in nats.
        temperature: In nats; large values give equal weights.

    Raises:
        UserError: If a small temperature rounds a weight to zero.
    """
    weights = softmax(advantages(rewards) / temperature)
    if not (weights > 0).all():
        raise UserError(
            f"ensemble.advantage.temperature: {temperature} leaves a fold without any "
            "weight; raise it"
        )
    return weights


def fold_reward(
    scores: Logits,
    labels: Labels,
    split: str,
    baseline: np.ndarray | None = None,
) -> Interval:
    """Compute the mean of ``log p(y)``, minus that of a baseline if given, in nats.

    Args:
        scores: A fold student's logits, which cover the split.
        labels: Labels that cover the split.
        split: ``dev`` or ``select``.
        baseline: ``(n, 3)`` probabilities of (A, B, tie) for the labelled rows of the
            split, in the order of ``labels``; or None.

    Raises:
        UserError: If the split has no labelled rows.
    """
    known = labels.rows(labels.split == split)
    if not len(known.ids):
        raise UserError(
            f"the split {split} has no labelled rows to weigh the folds on; raise "
            "folds.select_fraction or set ensemble.fold_weights: equal"
        )
    probs = symmetrise(scores.logits[scores.rows_of(known.ids)], scores.views)
    gains = -row_log_loss(probs, known.label)
    if baseline is not None:
        gains += row_log_loss(baseline, known.label)
    return group_bootstrap(gains, known.group)


def best_fold(folds: Sequence[int], models: Sequence[Logits], labels: Labels) -> int:
    """Find the fold whose model has the lowest log loss on the split select.

    Args:
        folds: Fold numbers.
        models: Each fold model's logits, which cover select.
        labels: Labels that cover select.

    Raises:
        UserError: If select has no labelled rows.
    """
    known = labels.rows(labels.split == "select")
    if not len(known.ids):
        raise UserError(
            "the split select has no labelled rows to choose the best fold on; raise "
            "folds.select_fraction or set predict.folds"
        )
    losses = [
        log_loss(symmetrise(m.logits[m.rows_of(known.ids)], m.views), known.label)
        for m in models
    ]
    return list(folds)[int(np.argmin(losses))]
