"""Both orders of a pair: reading their predictions, and combining them by id.

A view shows the answers in one order, and its classes are (first answer, second
answer, tie) as shown. Only this module turns them back into (A, B, tie).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdistill.errors import UserError
from prefdistill.scores.metrics import LEAST_PROBABILITY
from prefdistill.storage.tables import (
    LOGIT_COLUMNS,
    PREDICTION_SCHEMA,
    Logits,
    read_table,
    write_predictions,
)
from prefdistill.storage.whole_files import reading

PROBABILITY_COLUMNS = ("p_a", "p_b", "p_tie")
RAW_COLUMNS = ("raw_a", "raw_b", "raw_tie")
SYMMETRISED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("split", pa.string()),
        *[pa.field(name, pa.float64()) for name in PROBABILITY_COLUMNS + RAW_COLUMNS],
    ]
)


def swap_classes(values: np.ndarray) -> np.ndarray:
    """Exchange the first two classes of ``(..., 3)`` values; its own inverse."""
    return values[..., [1, 0, 2]]


def as_answers(values: np.ndarray, views: Sequence[str]) -> np.ndarray:
    """Turn ``(n, n_views, 3)`` values as shown into (A, B, tie) for every view."""
    turned = [
        swap_classes(values[:, place]) if view == "BA" else values[:, place]
        for place, view in enumerate(views)
    ]
    return np.stack(turned, axis=1)


def symmetrise(logits: np.ndarray, views: Sequence[str]) -> np.ndarray:
    """Probabilities of (A, B, tie): the mean over views, (p_AB + swap(p_BA)) / 2.

    Args:
        logits: ``(n, n_views, 3)``, classes as shown.
        views: Which order each view shows, ``AB`` or ``BA``; one view will do.

    Returns:
        ``(n, 3)`` float64 whose rows sum to one.
    """
    answers = as_answers(logits.astype(np.float64), views)
    # As scipy's softmax; jobs with a model go without scipy, which takes seconds.
    odds = np.exp(answers - answers.max(axis=2, keepdims=True))
    return (odds / odds.sum(axis=2, keepdims=True)).mean(axis=1)


def pool_opinions(probs: np.ndarray, others: np.ndarray, weight: float) -> np.ndarray:
    """Logarithmic opinion pool: p^(1 - w) q^w of each row, scaled to sum to one.

    Args:
        probs: ``(n, 3)``.
        others: ``(n, 3)`` of the same rows.
        weight: Share of the others, from 0 (they do not count) to 1.
    """
    logs = [np.log(np.maximum(each, LEAST_PROBABILITY)) for each in (probs, others)]
    odds = np.exp((1 - weight) * logs[0] + weight * logs[1])
    return odds / odds.sum(axis=1, keepdims=True)


def columns_of(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """Numeric columns side by side, ``(n, n_names)``."""
    return np.stack([table.column(name).to_numpy() for name in names], axis=1)


def read_predictions(
    paths: Sequence[Path], views: Sequence[str], splits: Sequence[str] | None = None
) -> Logits:
    """Read one file per view and join them by id, in the first file's order.

    Args:
        paths: One file per view.
        views: The views.
        splits: Read only rows of these splits; all if not given.

    Raises:
        UserError: If a row of one view is missing in another.
    """
    joined: Logits | None = None
    for path in paths:
        table = read_table(path, PREDICTION_SCHEMA)
        if splits is not None:
            wanted = pa.array(list(splits), pa.string())
            table = table.filter(pc.is_in(table.column("split"), wanted))
        with reading(path, "predictions"):
            view = Logits(
                ids=np.array(table.column("id").to_pylist(), dtype=np.str_),
                split=np.array(table.column("split").to_pylist(), dtype=np.str_),
                logits=columns_of(table, LOGIT_COLUMNS)[:, None],
                meta={"views": list(views)},
            )
        if joined is None:
            joined = view
            continue
        odd = np.setxor1d(joined.ids, view.ids)
        if len(odd):
            where = path if odd[0] in joined.ids else paths[0]
            raise UserError(f"{where}: lacks row id {odd[0]} of the other view")
        both = [joined.logits, view.logits[view.rows_of(joined.ids)]]
        joined = joined.replace_logits(np.concatenate(both, axis=1))
    if joined is None:
        raise UserError("no view was given; set predict.views")
    return joined


def write_views(paths: Sequence[Path], scores: Logits) -> None:
    """Write each view of the scores to its own file, in the order of the views."""
    for place, path in enumerate(paths):
        write_predictions(path, scores.ids, scores.split, scores.logits[:, place])


def average_logits(models: Sequence[Logits], weights: Sequence[float]) -> Logits:
    """Weighted mean of several models' logits, row by row and view by view.

    A fold model's own dev rows are left out, as no other model scored them.

    Args:
        models: One ``Logits`` per model, the same views in each.
        weights: One positive weight per model; they are normalised here.

    Raises:
        UserError: If the models differ in their other rows.
    """
    first, stacked = _on_common_rows(models)
    return first.replace_logits(np.average(stacked, axis=0, weights=weights))


def _on_common_rows(models: Sequence[Logits]) -> tuple[Logits, np.ndarray]:
    """The rows outside dev, and all models' logits ``(n_models, n, n_views, 3)``."""
    outside = [model.select(model.split != "dev") for model in models]
    first = outside[0]
    for model in outside[1:]:
        odd = np.setxor1d(first.ids, model.ids)
        if len(odd):
            raise UserError(f"row id {odd[0]} was not scored by every averaged model")
    stacked = [model.logits[model.rows_of(first.ids)] for model in outside]
    return first, np.stack(stacked).astype(np.float64)
