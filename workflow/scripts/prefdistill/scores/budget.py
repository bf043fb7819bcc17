"""A second pass only for the rows of which the first is least certain.

The second pass is the other order of the answers (budgeted test-time augmentation) or a
better model (a cascade). Uncertainty is the entropy of the first pass's calibrated
probabilities. Calibration and threshold are fitted on select, so the share of other
rows that pass the threshold differs a little from the wanted one.

Jobs with a model use this module too, so it goes without scipy.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prefdistill.errors import UserError
from prefdistill.scores.metrics import LEAST_PROBABILITY, Labels
from prefdistill.scores.scaling import Scaling, scaling_of
from prefdistill.scores.views import symmetrise
from prefdistill.storage.tables import Logits


def entropy(probs: np.ndarray) -> np.ndarray:
    """Entropy of ``(n, 3)`` probabilities, ``(n,)`` in nats."""
    log_probs = np.log(np.maximum(probs, LEAST_PROBABILITY))
    return -(probs * log_probs).sum(axis=1)


def threshold_for(entropies: np.ndarray, share: float) -> float:
    """The entropy that the given share of rows reaches or exceeds.

    Args:
        entropies: ``(n,)`` of the rows that the threshold is chosen on.
        share: From 0 (infinity: no row) to 1 (minus infinity: every row).
    """
    n_rows = round(share * len(entropies))
    if share >= 1:
        return -np.inf
    return np.sort(entropies)[-n_rows] if n_rows else np.inf


def mix_passes(
    first: np.ndarray, full: np.ndarray, threshold: float
) -> tuple[np.ndarray, float]:
    """Probabilities after both passes where the first is uncertain, else after one.

    Args:
        first: ``(n, 3)`` calibrated probabilities of the first pass.
        full: The same after both passes.
        threshold: Entropy of the first pass, in nats, from which on the second counts.

    Returns:
        ``(n, 3)`` probabilities, and the share of rows with a second pass.
    """
    above = entropy(first) >= threshold
    return np.where(above[:, None], full, first), float(above.mean())


def choose_rows(
    first: Logits, labels: Labels, view: str, share: float, calibration: dict[str, Any]
) -> dict[str, Any]:
    """Find the threshold from which on rows get the second view.

    Args:
        first: Logits of the first view alone, select rows among them.
        labels: Labels that cover select.
        view: The first view.
        share: Wanted share of rows, between 0 and 1.
        calibration: The scaling of the first view alone, as ``calibrate_judge``
            records it.

    Returns:
        A record for ``second_view.json``: view, share and calibration, the threshold in
        nats, and the share of each split that reaches it.

    Raises:
        UserError: If the share is less than one of the rows of select.
    """
    record = {"view": view, "share": share, "calibration": calibration}
    entropies = entropy(first_probabilities(first, record))
    known = np.isin(first.ids, labels.ids[labels.split == "select"])
    threshold = threshold_for(entropies[known], share)
    if not np.isfinite(threshold):
        raise UserError(
            f"predict.second_view_share: {share} is less than one of the "
            f"{known.sum()} rows of select; raise it or set predict.views to one view"
        )
    above = entropies >= threshold
    shares = {
        split: float(above[first.split == split].mean())
        for split in np.unique(first.split).tolist()
    }
    return record | {"threshold": float(threshold), "shares": shares}


def first_probabilities(first: Logits, record: dict[str, Any]) -> np.ndarray:
    """Calibrated probabilities of (A, B, tie) from the first view alone, ``(n, 3)``."""
    fit = scaling_of(record["calibration"])
    return symmetrise(fit.apply(first.logits), [record["view"]])


def is_uncertain(first: Logits, record: dict[str, Any]) -> np.ndarray:
    """Which rows the record gives a second view, ``(n,)`` bool."""
    return entropy(first_probabilities(first, record)) >= record["threshold"]


def combine_views(
    first: Logits,
    both: Logits,
    fit: Scaling,
    views: Sequence[str],
    record: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of all rows, from both views where the first is uncertain.

    Args:
        first: Logits of the first view of every row.
        both: Logits of both views of the uncertain rows, and maybe of others.
        fit: The scaling of the two views' average.
        views: The views, in the order of ``both``.
        record: What ``choose_rows`` returned.

    Returns:
        Calibrated and raw probabilities, both ``(n, 3)``, in the order of ``first``.

    Raises:
        UserError: If an uncertain row lacks its second view.
    """
    calibrated = first_probabilities(first, record)
    raw = symmetrise(first.logits, [record["view"]])
    rows = np.flatnonzero(is_uncertain(first, record))
    logits = both.logits[both.rows_of(first.ids[rows])]
    calibrated[rows] = symmetrise(fit.apply(logits), views)
    raw[rows] = symmetrise(logits, views)
    return calibrated, raw
