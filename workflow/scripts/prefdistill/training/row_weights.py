"""What out-of-fold teachers say of a label: weights of rows, and softer targets.

The information gain of a row is RLP's reward (arXiv 2510.01265) on a verdict: how much
more probable a teacher that has not seen the row finds its label than the class prior
does. A clear row gains much, a hard or mislabelled one little or less than nothing.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from prefdistill.scores.views import symmetrise
from prefdistill.storage.joining import find_rows
from prefdistill.storage.tables import read_logits


def unseen_probs(
    ids: np.ndarray, unseen: Iterable[list[Path]]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean probabilities of the teachers that left each row out.

    Args:
        ids: ``(n,)`` row ids of a train side.
        unseen: For each teacher its logits files of every fold. A row is out of fold
            where it is ``dev``.

    Returns:
        ``(n, 3)`` float64 probabilities of (A, B, tie), both orders averaged, and
        ``(n,)`` bool, false for rows that are dev nowhere: the extra ones, and those
        that no teacher scored.
    """
    total, n_teachers = np.zeros((len(ids), 3)), np.zeros(len(ids))
    for paths in unseen:
        for path in paths:
            scores = read_logits(path)
            dev = scores.select(scores.split == "dev")
            rows = find_rows(ids, dev.ids)
            known = rows >= 0
            total[rows[known]] += symmetrise(dev.logits[known], dev.views)
            n_teachers[rows[known]] += 1
    return total / np.maximum(n_teachers, 1)[:, None], n_teachers > 0


def gain_weights(
    gain: np.ndarray, *, beta: float, low: float, high: float
) -> np.ndarray:
    """Weights from information gains: clip(1 + beta (gain - mean) / sd), mean 1.

    Args:
        gain: ``(n,)`` information gains in nats.
        beta: Positive favours clear rows, negative hard ones.
        low: Least weight before the mean is set to 1.
        high: Largest such weight.

    Returns:
        ``(n,)`` float64; all 1 where the gains do not differ.
    """
    if not len(gain) or gain.std() == 0:
        return np.ones(len(gain))
    standard = (gain - gain.mean()) / gain.std()
    weights = np.clip(1 + beta * standard, low, high)
    return weights / weights.mean()


def soften(
    targets: np.ndarray, probs: np.ndarray, settings: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Move targets towards teachers that confidently expect another verdict.

    Args:
        targets: ``(n, 3)`` one-hot, (A, B, tie).
        probs: ``(n, 3)`` out-of-fold probabilities.
        settings: ``threshold``, the least probability of the other verdict, and
            ``share``, how much of the target becomes ``probs``.

    Returns:
        The targets, and ``(n,)`` bool, true where they were moved.
    """
    other = probs.argmax(axis=1) != targets.argmax(axis=1)
    moved = other & (probs.max(axis=1) >= settings["threshold"])
    share = settings["share"] * moved[:, None]
    return ((1 - share) * targets + share * probs).astype(targets.dtype), moved
