"""The score table of every stage, and paired differences between stages."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefdistill.report.stages import Predictions
from prefdistill.scores.metrics import (
    Labels,
    accuracy,
    brier,
    ece,
    group_bootstrap,
    log_loss,
    row_log_loss,
)
from prefdistill.scores.views import PROBABILITY_COLUMNS, columns_of
from prefdistill.storage.joining import find_rows
from prefdistill.storage.tables import read_table

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
PREDICTIONS_SCHEMA = pa.schema(
    [
        *[pa.field(name, pa.string()) for name in ("stage", "model")],
        pa.field("fold", pa.int32()),  # null for a model of no fold
        *[pa.field(name, pa.string()) for name in ("split", "views", "id")],
        *[pa.field(name, pa.float64()) for name in PROBABILITY_COLUMNS],
        pa.field("label", pa.int8()),  # 0 A, 1 B, 2 tie
        *[pa.field(name, pa.string()) for name in ("group", "source")],
    ]
)


def concatenate_folds(parts: Sequence[Predictions]) -> Predictions:
    """Rows of several folds side by side, each scored by its own fold's model."""
    views = parts[0].probs
    return replace(
        parts[0],
        fold=None,
        ids=np.concatenate([part.ids for part in parts]),
        probs={v: np.concatenate([part.probs[v] for part in parts]) for v in views},
    )


def mean_of_models(parts: Sequence[Predictions]) -> Predictions:
    """Mean probabilities of several models on the rows that all of them scored."""
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
    """What each fold-wise model does over all folds: dev rows pooled, others averaged.

    Where a stage has several models (teachers), the mean of their probabilities
    follows as the model ``mean``.
    """
    by_key: dict[tuple[str, str, str], list[Predictions]] = {}
    for one in predictions:
        if one.fold is not None:
            by_key.setdefault((one.stage, one.split, one.model), []).append(one)
    found, models = [], {}
    for (stage, split, _), parts in by_key.items():
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
    *,
    n_bootstrap: int,
    seed: int,
    n_bins: int,
) -> list[dict[str, Any]]:
    """Rows of ``scores.csv``: one per prediction and view, and the views' average."""
    table = []
    for one in predictions:
        known = labels.of(one.ids)
        for views, probs, agreement in one.by_views():
            losses = row_log_loss(probs, known.label)
            span = group_bootstrap(
                losses, known.group, n_bootstrap=n_bootstrap, seed=seed
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
                ece(probs, known.label, n_bins),
                agreement,
            )
            table.append(dict(zip(SCORE_COLUMNS, values, strict=True)))
    return table


def step_pairs(
    judges: Sequence[str], final_model: str, *, is_pooled: bool = False
) -> list[tuple[str, str]]:
    """Which stages are compared, in the order of the pipeline.

    Args:
        judges: Exported models.
        final_model: The one behind ``final``, or fold adapters.
        is_pooled: Whether ``final`` pools its judge with the trees.
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
    *,
    n_bootstrap: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of ``steps.csv``: log loss of ``to`` minus ``from`` on their common rows.

    A stage stands for all its folds together and, with several teachers, for their
    mean; a negative difference is a gain.
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
                n_bootstrap=n_bootstrap,
                seed=seed,
            )
            values = (start, end, split, len(ids), span.mean, span.low, span.high)
            table.append(dict(zip(STEP_COLUMNS, values, strict=True)))
    return table


def predictions_table(predictions: Sequence[Predictions], labels: Labels) -> pa.Table:
    """What was scored, one row for each prediction, view and pair."""
    parts = []
    for one in predictions:
        known, n_rows = labels.of(one.ids), len(one.ids)
        for view, probs in one.probs.items():
            columns = [[one.stage] * n_rows, [one.model] * n_rows, [one.fold] * n_rows]
            columns += [[one.split] * n_rows, [view] * n_rows, one.ids.tolist()]
            columns += [*probs.T, known.label, known.group.tolist()]
            columns.append(known.source.tolist())
            arrays = [
                pa.array(column, field.type)
                for column, field in zip(columns, PREDICTIONS_SCHEMA, strict=True)
            ]
            parts.append(pa.Table.from_arrays(arrays, schema=PREDICTIONS_SCHEMA))
    return pa.concat_tables(parts)


def read_predictions_table(path: Path) -> tuple[list[Predictions], Labels]:
    """What ``predictions_table`` wrote; the labels' split is that of a first mention.

    Raises:
        UserError: If the file is not such a table.
    """
    table = read_table(path, PREDICTIONS_SCHEMA)
    names = ("stage", "model", "split", "views", "id", "group", "source")
    columns = {name: np.array(table.column(name).to_pylist()) for name in names}
    folds = table.column("fold").fill_null(-1).to_numpy()
    label = table.column("label").to_numpy().astype(np.int64)
    probs = columns_of(table, PROBABILITY_COLUMNS)
    _, first = np.unique(columns["id"], return_index=True)
    labels = Labels(
        columns["id"], columns["split"], label, columns["group"], columns["source"]
    ).rows(np.sort(first))

    found: dict[tuple, Predictions] = {}
    keys = list(
        zip(*(columns[name] for name in names[:2]), folds,
            columns["split"], columns["views"], strict=True)
    )  # fmt: skip
    starts = [0, *[i for i in range(1, len(keys)) if keys[i] != keys[i - 1]], len(keys)]
    for start, end in pairwise(starts):
        stage, model, fold, split, view = keys[start]
        rows = slice(start, end)
        number = None if fold < 0 else int(fold)
        one = found.setdefault(
            (stage, model, fold, split),
            Predictions(
                str(stage), str(model), number, str(split), columns["id"][rows], {}
            ),
        )
        one.probs[str(view)] = probs[rows]
    return list(found.values()), labels
