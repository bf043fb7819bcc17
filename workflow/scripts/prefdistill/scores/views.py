"""Turn views back into (A, B, tie), and average over views and models.

A view shows the answers in one order. Its classes are (first, second, tie) as shown.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from prefdistill.classes import swap_classes
from prefdistill.errors import UserError
from prefdistill.scores.metrics import LEAST_PROBABILITY
from prefdistill.storage.logits import Logits

PROBABILITY_COLUMNS = ("p_a", "p_b", "p_tie")
RAW_COLUMNS = ("raw_a", "raw_b", "raw_tie")
SYMMETRISED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("split", pa.string()),
        *[pa.field(name, pa.float64()) for name in PROBABILITY_COLUMNS + RAW_COLUMNS],
    ]
)


def as_answers(values: np.ndarray, views: Sequence[str]) -> np.ndarray:
    """Turn ``(n, n_views, 3)`` values as shown into (A, B, tie) in every view."""
    turned = [
        swap_classes(values[:, place]) if view == "BA" else values[:, place]
        for place, view in enumerate(views)
    ]
    return np.stack(turned, axis=1)


def symmetrise(logits: np.ndarray, views: Sequence[str]) -> np.ndarray:
    """Average the views' probabilities of (A, B, tie): (p_AB + swap(p_BA)) / 2.

    Args:
        logits: ``(n, n_views, 3)``, classes as shown.
        views: The order that each view shows, ``AB`` or ``BA``; one view is enough.

    Returns:
        ``(n, 3)`` float64 whose rows sum to one.
    """
    answers = as_answers(logits.astype(np.float64), views)
    # The same as scipy's softmax, whose import takes seconds in jobs with a model.
    odds = np.exp(answers - answers.max(axis=2, keepdims=True))
    return (odds / odds.sum(axis=2, keepdims=True)).mean(axis=1)


def pool_opinions(probs: np.ndarray, others: np.ndarray, weight: float) -> np.ndarray:
    """Pool two models' probabilities: p^(1 - w) q^w of each row, scaled to sum to one.

    Args:
        probs: ``(n, 3)`` probabilities of one model.
        others: ``(n, 3)`` probabilities of the other model for the same rows.
        weight: Share of the other model, from 0 (it does not count) to 1.
    """
    logs = [np.log(np.maximum(each, LEAST_PROBABILITY)) for each in (probs, others)]
    odds = np.exp((1 - weight) * logs[0] + weight * logs[1])
    return odds / odds.sum(axis=1, keepdims=True)


def columns_of(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """Stack numeric columns side by side, ``(n, n_names)``."""
    return np.stack([table.column(name).to_numpy() for name in names], axis=1)


def average_logits(models: Sequence[Logits], weights: Sequence[float]) -> Logits:
    """Average several models' logits with weights, row by row and view by view.

    Dev rows are left out, because only their own fold's model scores them. The
    result keeps the provenance that all models share.

    Args:
        models: One ``Logits`` per model, the same views in each.
        weights: One positive weight per model; they need not sum to one.

    Raises:
        UserError: If the models differ in their views or their other rows.
    """
    first, stacked = _on_common_rows(models)
    meta = {
        key: value
        for key, value in first.meta.items()
        if all(key in model.meta and model.meta[key] == value for model in models)
    }
    averaged = np.average(stacked, axis=0, weights=weights).astype(np.float32)
    return replace(first, logits=averaged, meta=meta)


def _on_common_rows(models: Sequence[Logits]) -> tuple[Logits, np.ndarray]:
    """Join the rows outside dev: ids, and logits ``(n_models, n, n_views, 3)``."""
    outside = [model.select(model.split != "dev") for model in models]
    first = outside[0]
    for model in outside[1:]:
        if model.views != first.views:
            raise UserError(
                f"the averaged models show {first.views} and {model.views}; they need "
                "the same views in the same order"
            )
        odd = np.setxor1d(first.ids, model.ids)
        if len(odd):
            raise UserError(f"row id {odd[0]} was not scored by every averaged model")
    stacked = [model.logits[model.rows_of(first.ids)] for model in outside]
    return first, np.stack(stacked).astype(np.float64)
