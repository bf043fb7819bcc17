"""Join a student's training rows with their labels, teachers' logits and weights."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefdistill.scores.metrics import Labels, class_prior, labels_of
from prefdistill.settings import DistillationSettings, SampleWeightSettings
from prefdistill.storage.logits import Logits
from prefdistill.storage.tables import table_targets
from prefdistill.training.row_weights import gain_weights, unseen_probs
from prefdistill.training.teachers import Teacher, pseudo_logits, teacher_logits

logger = logging.getLogger(__name__)

TEXT_COLUMNS = ["prompt", "response_a", "response_b"]


@dataclass(frozen=True)
class Lessons:
    """The n rows that a student learns from, with their targets and weights.

    Attributes:
        table: The rows, ``FOLD_SCHEMA``.
        targets: ``(n, 3)`` float32 (A, B, tie).
        is_labelled: ``(n,)`` bool, whether the target counts.
        teacher_logits: ``(n, n_teachers, 2, 3)`` float32, orders AB and BA, classes as
            shown.
        has_teacher: ``(n, n_teachers)`` bool, whether a teacher scored the row.
        row_weights: ``(n,)`` float32 factors of the rows' losses.
        record: Counts for ``rows.json``.
    """

    table: pa.Table
    targets: np.ndarray
    is_labelled: np.ndarray
    teacher_logits: np.ndarray
    has_teacher: np.ndarray
    row_weights: np.ndarray
    record: dict[str, Any]


def make_lessons(
    fold: pa.Table,
    table: pa.Table,
    is_labelled: np.ndarray,
    unlabelled: pa.Table | None,
    teachers: Sequence[Teacher],
    settings: DistillationSettings,
) -> Lessons:
    """Join rows with their teachers, weigh them, and add pseudo-labelled rows.

    Args:
        fold: All rows of the student's fold, ``FOLD_SCHEMA``.
        table: The train rows to learn from.
        is_labelled: ``(n,)`` bool, whether a train row's verdict may be used.
        unlabelled: Unlabelled pairs to learn from as well, or None.
        teachers: The student's teachers.
        settings: Which of these the student learns from.

    Raises:
        UserError: If a teacher scored none of the rows, or lacks an unlabelled one.
    """
    logits, found = teacher_logits(ids_of(table), teachers)
    names = [teacher.name for teacher in teachers]
    lessons = Lessons(
        table=table,
        targets=table_targets(table),
        is_labelled=is_labelled,
        teacher_logits=logits,
        has_teacher=found,
        row_weights=np.ones(len(table), np.float32),
        record={
            "n_rows": len(table),
            "n_labelled": int(is_labelled.sum()),
            "dev_is_clean": settings.keeps_dev_clean(names),
        },
    )
    labels = labels_of(fold.drop_columns(TEXT_COLUMNS))
    unseen = [scores for teacher in teachers for scores in teacher.unseen]
    if unseen:
        lessons = _judged(lessons, labels, unseen, settings.sample_weights)
    if unlabelled is not None and teachers:
        weight = settings.pseudo_labels.weight
        lessons = _with_pseudo(lessons, labels, unlabelled, teachers, weight)
    return lessons


def ids_of(table: pa.Table) -> np.ndarray:
    """Return a table's row ids, ``(n,)`` unicode."""
    return np.array(table.column("id").to_pylist(), dtype=np.str_)


def _judged(
    lessons: Lessons,
    labels: Labels,
    unseen: Sequence[Logits],
    settings: SampleWeightSettings,
) -> Lessons:
    """Weigh the labelled rows that some teacher was not trained on."""
    probs, is_unseen = unseen_probs(ids_of(lessons.table), unseen)
    rows = np.flatnonzero(is_unseen & lessons.is_labelled)
    label = lessons.targets[rows].argmax(axis=1)
    prior = class_prior(labels)
    own = np.maximum(probs[rows, label], np.finfo(np.float64).tiny)  # log(0) is -inf
    gain = np.log(own) - np.log(prior[label])
    weights = lessons.row_weights.copy()
    weights[rows] = gain_weights(gain, settings)
    shares = [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]
    record = {
        "n_judged_out_of_fold": len(rows),
        "information_gain": {"mean": gain.mean(), "sd": gain.std()},
        "weight_quantiles": dict(
            zip(map(str, shares), np.quantile(weights[rows], shares), strict=True)
        ),
    } if len(rows) else {"n_judged_out_of_fold": 0}  # fmt: skip
    logger.info("%d of %d rows judged by out-of-fold teachers", len(rows), len(unseen))
    return replace(lessons, row_weights=weights, record=lessons.record | record)


def _with_pseudo(
    lessons: Lessons,
    labels: Labels,
    unlabelled: pa.Table,
    teachers: Sequence[Teacher],
    weight: float,
) -> Lessons:
    """Append unlabelled rows, except those whose prompt is in dev, select or test."""
    # Rows of one prompt form a group; a held-out prompt must not be seen in training.
    groups = pa.array(np.unique(labels.group[labels.split != "train"]).tolist())
    kept = unlabelled.filter(pc.invert(pc.is_in(unlabelled.column("group"), groups)))
    n_new, n_teachers = len(kept), lessons.has_teacher.shape[1]
    record = {"n_pseudo_labelled": n_new, "n_pseudo_left_out": len(unlabelled) - n_new}
    logger.info(
        "%d unlabelled rows join with weight %g; %d share a prompt with held-out rows",
        n_new, weight, len(unlabelled) - n_new,
    )  # fmt: skip

    def joined(own: np.ndarray, value: float, *shape: int) -> np.ndarray:
        return np.concatenate([own, np.full((n_new, *shape), value, own.dtype)])

    logits = pseudo_logits(ids_of(kept), teachers)
    return Lessons(
        table=pa.concat_tables([lessons.table, kept]),
        targets=joined(lessons.targets, 1 / 3, 3),  # ignored, as they are unlabelled
        is_labelled=joined(lessons.is_labelled, False),
        teacher_logits=np.concatenate([lessons.teacher_logits, logits]),
        has_teacher=joined(lessons.has_teacher, True, n_teachers),
        row_weights=joined(lessons.row_weights, weight),
        record=lessons.record | record,
    )
