"""Fit scalings of logits, and measure their cross-fitted effect.

Vector scaling (Guo et al. 2017, "On calibration of modern neural networks") maps
logits z to a * z + b with one scale and one shift per class. It is fitted by log loss
on rows that the model was not trained on.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

from prefdistill.classes import swap_labels
from prefdistill.errors import UserError
from prefdistill.scores.metrics import (
    Interval,
    Labels,
    class_prior,
    ece,
    group_bootstrap,
    row_log_loss,
)
from prefdistill.scores.scaling import Scaling
from prefdistill.scores.views import as_answers, symmetrise
from prefdistill.settings import ScalingSettings
from prefdistill.storage.logits import Logits

# A normal prior around "no change" keeps scales and shifts finite if a class is rare or
# the rows are few. It weighs about as much as a handful of rows.
PRIOR_SD = 0.5
SCALE_BOUNDS = (0.01, 100.0)
N_PARTS = 5  # of cross-fitting


def scaled_log_loss(
    a: np.ndarray, b: np.ndarray, logits: np.ndarray, labels: np.ndarray
) -> tuple[float, np.ndarray]:
    """Compute the mean log loss of view-averaged probabilities, and its gradient.

    Args:
        a: ``(3,)`` scales.
        b: ``(3,)`` shifts.
        logits: ``(n, n_views, 3)`` float64, all views in the classes of ``labels``.
        labels: ``(n,)`` class index.

    Returns:
        The loss in nats, and its ``(6,)`` gradient: first by ``a``, then by ``b``.
    """
    log_probs = log_softmax(a * logits + b, axis=2)
    own = np.take_along_axis(log_probs, labels[:, None, None], axis=2)[:, :, 0]
    loss = np.log(logits.shape[1]) - logsumexp(own, axis=1).mean()
    # A view contributes in proportion to its share of the averaged probability.
    share = softmax(own, axis=1)[:, :, None] / len(labels)
    slope = share * (np.exp(log_probs) - np.eye(3)[labels][:, None])
    by_scale, by_shift = (slope * logits).sum(axis=(0, 1)), slope.sum(axis=(0, 1))
    return float(loss), np.concatenate([by_scale, by_shift])


def _free_parameters(method: str, tied: bool) -> tuple[np.ndarray, int]:
    """Return ``(n, 6)`` rows that span the allowed (a, b), and the number of scales."""
    if method == "temperature":
        return np.array([[1.0, 1, 1, 0, 0, 0]]), 1
    if tied:
        # The shifts sum to zero: a constant added to all three changes nothing.
        scales = [[1.0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]
        return np.array([*scales, [0, 0, 0, -0.5, -0.5, 1]]), 2
    return np.eye(6), 3


def fit_scaling(
    logits: np.ndarray, labels: np.ndarray, *, method: str, tied: bool
) -> Scaling:
    """Fit a scaling by L-BFGS on the log loss of view-averaged probabilities.

    Pass one view, ``(n, 1, 3)``, for plain vector scaling. Pass both views, turned into
    the same classes, to fit for their average; then the scaling must be tied, because
    it is applied to swapped classes too. Scales are positive, shifts sum to zero.

    Args:
        logits: ``(n, n_views, 3)``, finite.
        labels: ``(n,)`` class index, 0 to 2.
        method: ``vector``, ``temperature``, or ``none`` for the identity.
        tied: Whether A and B share scale and shift (swap-equivariant).

    Raises:
        ValueError: If shapes differ, a label is out of range, or there are no rows.
    """
    if logits.ndim != 3 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"cannot pair logits {logits.shape} with labels {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= 3:
        raise ValueError("labels must lie in [0, 3)")
    if method == "none":
        return Scaling(method, tied)
    basis, n_scales = _free_parameters(method, tied)
    start = np.where(np.arange(len(basis)) < n_scales, 1.0, 0.0)
    logits = logits.astype(np.float64)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = np.split(theta @ basis, 2)
        loss, gradient = scaled_log_loss(a, b, logits, labels)
        change = (theta - start) / (PRIOR_SD**2 * len(labels))
        return loss + 0.5 * change @ (theta - start), basis @ gradient + change

    # An untied fit needs no constraint on its shifts: the gradient has no component
    # along their common shift, so they keep the sum zero that they start with.
    bounds = [SCALE_BOUNDS] * n_scales + [(None, None)] * (len(basis) - n_scales)
    fit = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000},
    )
    a, b = np.split(fit.x @ basis, 2)
    return Scaling(method, tied, tuple(map(float, a)), tuple(map(float, b)))


def cross_fit(
    logits: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    method: str,
    tied: bool,
) -> np.ndarray:
    """Scale each row by a fit that has not seen its prompt group.

    Args:
        logits: ``(n, n_views, 3)`` as for ``fit_scaling``.
        labels: ``(n,)`` class index.
        groups: ``(n,)`` prompt group.
        method: As for ``fit_scaling``.
        tied: As for ``fit_scaling``.

    Returns:
        ``(n, n_views, 3)`` float64 scaled logits.

    Raises:
        UserError: If all rows share one prompt.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise UserError(
            f"{len(labels)} labelled rows on {len(names)} prompt are too few to "
            "calibrate on; raise the number of rows or the split's fraction"
        )
    n_parts = min(N_PARTS, len(names))
    part = (np.random.default_rng(0).permutation(len(names)) % n_parts)[group]
    scaled = np.empty(logits.shape)
    for k in range(n_parts):
        fit = fit_scaling(
            logits[part != k], labels[part != k], method=method, tied=tied
        )
        scaled[part == k] = fit.apply(logits[part == k])
    return scaled


def pool_views(
    logits: np.ndarray, labels: np.ndarray, views: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Make every view a row of its own, with the label as that view shows the answers.

    Returns:
        ``(n * n_views, 1, 3)`` logits, row by row, and their ``(n * n_views,)`` labels.
    """
    swapped = swap_labels(labels)
    shown = np.stack([swapped if v == "BA" else labels for v in views], axis=1)
    return logits.reshape(-1, 1, 3), shown.ravel()


def _effect(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> dict[str, Any]:
    """Compare log loss and ECE of ``(n, 3)`` probabilities before and after."""
    losses = [row_log_loss(probs, labels) for probs in (before, after)]
    return {
        "nll_before": float(losses[0].mean()),
        "nll_after": float(losses[1].mean()),
        "nll_difference": asdict(group_bootstrap(losses[1] - losses[0], groups)),
        "ece_before": ece(before, labels),
        "ece_after": ece(after, labels),
    }


def information_gain(
    probs: np.ndarray, labels: Labels, prior: np.ndarray
) -> tuple[np.ndarray, Interval]:
    """Compute each label's log probability minus that of its class prior, in nats.

    Args:
        probs: ``(n, 3)`` probabilities of (A, B, tie) from a model that has not been
            trained on these rows.
        labels: The rows' labels.
        prior: ``(3,)`` class shares.

    Returns:
        The ``(n,)`` gains, and their mean with its interval.
    """
    own = np.log(prior)[labels.label]
    gain = -row_log_loss(probs, labels.label) - own
    return gain, group_bootstrap(gain, labels.group)


def cross_fit_views(
    logits: np.ndarray, labels: Labels, views: Sequence[str], *, method: str, tied: bool
) -> np.ndarray:
    """Cross-fit logits with views pooled: ``(n, n_views, 3)`` float64, as shown."""
    pooled, shown = pool_views(logits, labels.label, views)
    groups = np.repeat(labels.group, len(views))
    scaled = cross_fit(pooled, shown, groups, method=method, tied=tied)
    return scaled.reshape(logits.shape)


def calibrate_teacher(
    scores: Logits, labels: Labels, settings: ScalingSettings
) -> tuple[Scaling, dict[str, Any]]:
    """Fit a teacher's scaling on its dev rows, both views pooled.

    Args:
        scores: The teacher's logits.
        labels: Labels of its fold file.
        settings: The method, and whether A and B share their parameters.

    Returns:
        The scaling to apply, and a record for ``calibration.json``: the effect and
        the gate on information gain, both cross-fitted.

    Raises:
        UserError: If no dev row was scored, or the logits are of another fold.
    """
    labels.check_splits(scores.ids, scores.split)
    dev = scores.select(scores.split == "dev")
    if not len(dev.ids):
        raise UserError(
            "no dev row has logits, so there is nothing to calibrate on; let "
            "teachers.<name>.inference.rows or n_rows take in dev rows"
        )
    known, views = labels.of(dev.ids), dev.views
    pooled, shown = pool_views(dev.logits, known.label, views)
    method, tied = settings.method, settings.tied
    fit = fit_scaling(pooled, shown, method=method, tied=tied)
    scaled = cross_fit_views(dev.logits, known, views, method=method, tied=tied)
    effect = _effect(
        softmax(pooled[:, 0].astype(np.float64), axis=1),
        softmax(scaled.reshape(-1, 3), axis=1),
        shown,
        np.repeat(known.group, len(views)),
    )
    _, gain = information_gain(symmetrise(scaled, views), known, class_prior(labels))
    gate = {
        "information_gain": gain.mean,
        "low": gain.low,
        "high": gain.high,
        "passed": gain.low > 0,
    }
    return fit, {**asdict(fit), "n_dev": len(dev.ids), **effect, "gate": gate}


def calibrate_judge(
    scores: Logits,
    labels: Labels,
    method: str,
    split: str = "select",
) -> tuple[Scaling, dict[str, Any]]:
    """Fit a judge's tied scaling on select by the loss of its averaged probabilities.

    Averaging two views makes probabilities less confident than either view, so a fit on
    single views would not suit the average.

    Args:
        scores: Logits that cover the rows to fit on.
        labels: Labels of a fold file.
        method: As for ``fit_scaling``.
        split: The split to fit on.

    Returns:
        The scaling, and a record for ``calibration.json`` with its cross-fitted effect.

    Raises:
        UserError: If the split has no labelled rows, or the logits are of other splits.
    """
    labels.check_splits(scores.ids, scores.split)
    known = labels.rows(labels.split == split)
    if not len(known.ids):
        raise UserError(
            f"the split {split} has no labelled rows to calibrate the judge on; raise "
            f"folds.{split}_fraction"
        )
    logits = as_answers(scores.logits[scores.rows_of(known.ids)], scores.views)
    settings = {"method": method, "tied": True}
    fit = fit_scaling(logits, known.label, **settings)
    scaled = cross_fit(logits, known.label, known.group, **settings)
    answers = ["AB"] * len(scores.views)
    effect = _effect(
        symmetrise(logits, answers),
        symmetrise(scaled, answers),
        known.label,
        known.group,
    )
    return fit, {**asdict(fit), "n_select": len(known.ids), **effect}


def apply_to_teacher(scores: Logits, fit: Scaling, digest: str) -> Logits:
    """Scale a teacher's logits, and record the scaling in their provenance.

    Args:
        scores: The raw logits.
        fit: The scaling.
        digest: Digest of the file of the raw logits.
    """
    applied = {**asdict(fit), "fingerprint": fingerprint(fit, digest)}
    scaled = scores.replace_logits(fit.apply(scores.logits))
    return replace(scaled, meta={**scores.meta, "calibration": applied})


def fingerprint(fit: Scaling, logits_digest: str) -> str:
    """Identify calibrated logits by their scaling and the digest of the raw logits."""
    text = json.dumps([asdict(fit), logits_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
