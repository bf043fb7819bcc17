"""Compute the score table of every stage, and paired differences between stages."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from prefdistill.report.predictions import Predictions
from prefdistill.scores.metrics import (
    Labels,
    accuracy,
    brier,
    ece,
    group_bootstrap,
    log_loss,
    row_log_loss,
)
from prefdistill.settings import EvaluationSettings
from prefdistill.storage.joining import find_rows

MEAN_MODEL = "mean"
SCORE_COLUMNS = (
    "stage",
    "model",
    "fold",
    "split",
    "views",
    "n",
    "log_loss",
    "log_loss_low",
    "log_loss_high",
    "accuracy",
    "brier",
    "ece",
    "swap_agreement",
)
STEP_COLUMNS = ("from", "to", "split", "n", "difference", "low", "high")


def concatenate_folds(parts: Sequence[Predictions]) -> Predictions:
    """Concatenate the rows of several folds, each scored by its own fold's model."""
    views = parts[0].probs
    return replace(
        parts[0],
        fold=None,
        ids=np.concatenate([part.ids for part in parts]),
        probs={v: np.concatenate([part.probs[v] for part in parts]) for v in views},
    )


def mean_of_models(parts: Sequence[Predictions]) -> Predictions:
    """Average the probabilities of several models on the rows that all scored."""
    ids = parts[0].ids
    for part in parts[1:]:
        ids = ids[np.isin(ids, part.ids)]
    order = [find_rows(part.ids, ids) for part in parts]
    probs = {
        view: np.mean(
            [p.probs[view][rows] for p, rows in zip(parts, order, strict=True)], axis=0
        )
        for view in parts[0].probs
    }
    return replace(parts[0], fold=None, ids=ids, probs=probs)


def over_folds(predictions: Iterable[Predictions]) -> list[Predictions]:
    """Combine each model's folds: concatenate dev rows, average the others.

    Where a stage has several models (teachers), the mean of their probabilities
    follows as the model ``mean``.
    """
    by_key: dict[tuple[str, str, str], list[Predictions]] = {}
    for one in predictions:
        if one.fold is not None:
            by_key.setdefault((one.stage, one.split, one.model), []).append(one)
    found, models = [], {}
    for (stage, split, _), parts in by_key.items():
        # Each dev row belongs to one fold; the other rows are scored by every fold.
        whole = concatenate_folds(parts) if split == "dev" else mean_of_models(parts)
        found.append(whole)
        models.setdefault((stage, split), []).append(whole)
    for parts in models.values():
        if len(parts) > 1:
            found.append(replace(mean_of_models(parts), model=MEAN_MODEL))
    return found


def score_rows(
    predictions: Sequence[Predictions],
    labels: Labels,
    evaluation: EvaluationSettings,
) -> list[dict[str, Any]]:
    """Score each prediction by view and averaged over views: rows of ``scores.csv``.

    Args:
        predictions: What to score.
        labels: Labels that cover their rows.
        evaluation: Bootstrap draws, their seed, bins of confidence.

    Returns:
        Rows with the keys ``SCORE_COLUMNS``; losses in nats.
    """
    table = []
    for one in predictions:
        known = labels.of(one.ids)
        for views, probs, agreement in one.by_views():
            losses = row_log_loss(probs, known.label)
            span = group_bootstrap(
                losses,
                known.group,
                n_bootstrap=evaluation.n_bootstrap,
                seed=evaluation.seed,
            )
            values = (
                one.stage,
                one.model,
                one.fold,
                one.split,
                views,
                len(one.ids),
                log_loss(probs, known.label),
                span.low,
                span.high,
                accuracy(probs, known.label),
                brier(probs, known.label),
                ece(probs, known.label, evaluation.n_bins),
                agreement,
            )
            table.append(dict(zip(SCORE_COLUMNS, values, strict=True)))
    return table


def step_pairs(
    judges: Sequence[str], final_model: str, *, is_pooled: bool = False
) -> list[tuple[str, str]]:
    """List the stages to compare, in the order of the pipeline.

    Args:
        judges: Names of the exported models.
        final_model: The model behind ``final``: one of these, or fold adapters.
        is_pooled: Whether ``final`` pools its judge with the trees.

    Returns:
        Pairs of stages, before and after.
    """
    chain = ["prior", "length", "trees", "teacher", "teacher_calibrated"]
    chain += ["student", "adapters", *judges]
    pairs = list(pairwise(chain))
    pairs.append(("student_labels_only", "student"))
    pairs += [(judge, f"{judge}_calibrated") for judge in judges]
    source = final_model if final_model in judges else "adapters"
    if is_pooled:
        pairs += [(f"{source}_calibrated", "final"), ("trees", "final")]
    return [*pairs, (source, "final"), ("prior", "final"), ("bayes", "final")]


def paired_steps(
    predictions: Sequence[Predictions],
    labels: Labels,
    pairs: Sequence[tuple[str, str]],
    evaluation: EvaluationSettings,
) -> list[dict[str, Any]]:
    """Compare pairs of stages on their common rows of dev and test.

    A stage stands for all its folds together. Several teachers are represented by
    their mean.

    Args:
        predictions: Those of all stages; pairs without both stages are left out.
        labels: Labels that cover their rows.
        pairs: Stages before and after.
        evaluation: Bootstrap draws and their seed.

    Returns:
        Rows of ``steps.csv`` with the keys ``STEP_COLUMNS``: log loss after minus
        before, in nats. A negative difference is a gain.
    """
    whole: dict[tuple[str, str], Predictions] = {}
    for one in predictions:
        key = (one.stage, one.split)
        if one.fold is None and (key not in whole or one.model == MEAN_MODEL):
            whole[key] = one
    table = []
    for split in ("dev", "test"):
        for start, end in pairs:
            before, after = whole.get((start, split)), whole.get((end, split))
            if before is None or after is None:
                continue
            ids = before.ids[np.isin(before.ids, after.ids)]
            if not len(ids):
                continue
            known = labels.of(ids)
            losses = [
                row_log_loss(p.probs_of(ids), known.label) for p in (before, after)
            ]
            span = group_bootstrap(
                losses[1] - losses[0],
                known.group,
                n_bootstrap=evaluation.n_bootstrap,
                seed=evaluation.seed,
            )
            values = (start, end, split, len(ids), span.mean, span.low, span.high)
            table.append(dict(zip(STEP_COLUMNS, values, strict=True)))
    return table
