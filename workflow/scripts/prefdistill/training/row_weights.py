"""Weigh rows by how probable out-of-fold teachers find their labels.

The information gain of a row is RLP's reward (arXiv 2510.01265), applied to a verdict:
log probability of the row's label from a teacher that has not seen the row, minus its
log probability under the class prior. Clear rows have a large gain, hard rows a small
one, and mislabelled rows a negative one.
"""

from collections.abc import Sequence

import numpy as np

from prefdistill.scores.views import symmetrise
from prefdistill.settings import SampleWeightSettings
from prefdistill.storage.joining import find_rows
from prefdistill.storage.logits import Logits


def unseen_probs(
    ids: np.ndarray, unseen: Sequence[Logits]
) -> tuple[np.ndarray, np.ndarray]:
    """Average the probabilities of the teachers that were not trained on a row.

    Args:
        ids: ``(n,)`` ids of train rows.
        unseen: Logits of every teacher and fold, teacher by teacher. A row is out of
            fold where its split is ``dev``.

    Returns:
        ``(n, 3)`` float64 probabilities of (A, B, tie), both orders averaged; and
        ``(n,)`` bool, false for rows that are dev in no fold (the extra rows) and for
        rows that no teacher scored.
    """
    total, n_teachers = np.zeros((len(ids), 3)), np.zeros(len(ids))
    for scores in unseen:
        dev = scores.select(scores.split == "dev")
        rows = find_rows(ids, dev.ids)
        known = rows >= 0
        total[rows[known]] += symmetrise(dev.logits[known], dev.views)
        n_teachers[rows[known]] += 1
    return total / np.maximum(n_teachers, 1)[:, None], n_teachers > 0


def gain_weights(gain: np.ndarray, settings: SampleWeightSettings) -> np.ndarray:
    """Turn information gains into weights: clip(1 + beta (gain - mean) / sd), mean 1.

    Args:
        gain: ``(n,)`` information gains in nats.
        settings: ``beta`` favours clear rows if positive, hard rows if negative.
            ``low`` and ``high`` bound the weights before their mean is set to 1.

    Returns:
        ``(n,)`` float64; all 1 if the gains do not differ.
    """
    if not len(gain) or gain.std() == 0:
        return np.ones(len(gain))
    standard = (gain - gain.mean()) / gain.std()
    weights = np.clip(1 + settings.beta * standard, settings.low, settings.high)
    return weights / weights.mean()
