"""Gather what every stage predicts from its files, for the score table.

A row that a calibration was fitted on is predicted by a cross-fitted calibration. So no
score comes from rows that the scored model or its calibration has seen.
"""

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np

from prefdistill.errors import UserError
from prefdistill.report.inputs import StageFiles
from prefdistill.report.predictions import (
    BOTH,
    SPLITS,
    Predictions,
    from_baselines,
    from_logits,
)
from prefdistill.scores.calibration import (
    cross_fit,
    cross_fit_views,
)
from prefdistill.scores.fold_weights import read_weights
from prefdistill.scores.metrics import Labels, read_labels, swap_agreement
from prefdistill.scores.scaling import Scaling, read_scaling
from prefdistill.scores.views import (
    PROBABILITY_COLUMNS,
    SYMMETRISED_SCHEMA,
    as_answers,
    average_logits,
    columns_of,
)
from prefdistill.settings import ScalingSettings
from prefdistill.storage.joining import find_rows
from prefdistill.storage.logits import Logits, read_logits
from prefdistill.storage.tables import read_table


def pair_teacher_files(
    teachers: Sequence[str], raw: Sequence[Path], calibrated: Sequence[Path]
) -> dict[str, list[tuple[Path, Path]]]:
    """Pair raw and calibrated logits, listed teacher by teacher, under their names."""
    pairs = list(zip(raw, calibrated, strict=True))
    n_folds = len(pairs) // max(len(teachers), 1)
    return {
        name: pairs[place * n_folds : (place + 1) * n_folds]
        for place, name in enumerate(teachers)
    }


def read_all_labels(fold_paths: Sequence[Path]) -> Labels:
    """Read the labels of all rows that may be scored: dev of each fold, select, test.

    Raises:
        UserError: If a file is not such a parquet file.
    """
    tables = [
        labels.rows(labels.split != "train") for labels in map(read_labels, fold_paths)
    ]
    parts = [
        np.concatenate([getattr(table, field.name) for table in tables])
        for field in fields(Labels)
    ]
    # Rows of select and test are in every fold file.
    _, first = np.unique(parts[0], return_index=True)
    return Labels(*parts).rows(first)


def calibrated_judge(scores: Logits, fit: Scaling, labels: Labels) -> Logits:
    """Calibrate a judge's logits; cross-fit those of select, where the fit was made."""
    scaled = fit.apply(scores.logits)
    rows = np.flatnonzero(scores.split == "select")
    if len(rows):
        known = labels.of(scores.ids[rows])
        answers = as_answers(scores.logits[rows], scores.views)
        settings = {"method": fit.method, "tied": fit.tied}
        fitted = cross_fit(answers, known.label, known.group, **settings)
        # The swap is its own inverse: this turns answers back into classes as shown.
        scaled[rows] = as_answers(fitted, scores.views)
    return scores.replace_logits(scaled)


def calibrated_teacher(
    raw: Logits, calibrated: Logits, labels: Labels, scaling: ScalingSettings
) -> Logits:
    """Replace a teacher's calibrated logits of dev rows by cross-fitted ones.

    Args:
        raw: The teacher's logits.
        calibrated: The same, scaled by a fit on dev rows.
        labels: Labels that cover dev.
        scaling: How the fit was made.
    """
    rows = np.flatnonzero(calibrated.split == "dev")
    known = labels.of(calibrated.ids[rows])
    dev = raw.logits[raw.rows_of(calibrated.ids[rows])]
    logits = calibrated.logits.copy()
    logits[rows] = cross_fit_views(
        dev, known, raw.views, method=scaling.method, tied=scaling.tied
    )
    return calibrated.replace_logits(logits)


def score_teacher(
    name: str,
    paths: Sequence[tuple[Path, Path]],
    labels: Labels,
    scaling: ScalingSettings,
) -> list[Predictions]:
    """Read a teacher's predictions, raw and calibrated, from its logits of each fold.

    Args:
        name: The teacher.
        paths: Raw and calibrated logits of each fold.
        labels: Labels that cover dev.
        scaling: How its calibrations were fitted.
    """
    found = []
    for fold, (raw_path, calibrated_path) in enumerate(paths):
        raw, calibrated = read_logits(raw_path), read_logits(calibrated_path)
        scaled = calibrated_teacher(raw, calibrated, labels, scaling)
        found += from_logits("teacher", name, fold, raw)
        found += from_logits("teacher_calibrated", name, fold, scaled)
    return found


def score_students(
    stage: str, paths: Sequence[Path], weights_path: Path | None = None
) -> list[Predictions]:
    """Read the fold students, and average their logits as the stage ``adapters``.

    Args:
        stage: Stage of the fold students.
        paths: Each fold's logits.
        weights_path: The ensemble's weights for the average, or None for no average.
    """
    models = [read_logits(path) for path in paths]
    found = []
    for fold, scores in enumerate(models):
        found += from_logits(stage, "student", fold, scores)
    if weights_path is not None:
        weights = read_weights(weights_path, list(range(len(models))))
        mean = average_logits(models, weights)
        found += from_logits("adapters", "student", None, mean)
    return found


def score_judge(
    name: str, scores: Logits, fit: Scaling, labels: Labels
) -> list[Predictions]:
    """Return an exported model's predictions, raw and with its own calibration."""
    scaled = calibrated_judge(scores, fit, labels)
    return [
        *from_logits(name, name, None, scores),
        *from_logits(f"{name}_calibrated", name, None, scaled),
    ]


def score_final(
    name: str, symmetrised_path: Path, scores: Logits, fit: Scaling
) -> Predictions:
    """Read the test predictions of the submission's model, just as it makes them.

    Args:
        name: The model.
        symmetrised_path: Its symmetrised predictions.
        scores: Its logits, for the swap agreement.
        fit: Its own calibration, likewise.
    """
    table = read_table(symmetrised_path, SYMMETRISED_SCHEMA)
    ids = np.array(table.column("id").to_pylist(), dtype=np.str_)
    rows = np.array(table.column("split").to_pylist()) == "test"
    probs = {"+".join(scores.views): columns_of(table, PROBABILITY_COLUMNS)[rows]}
    agreement = None
    if len(scores.views) == 2:
        # The symmetrised file holds only the average of both views.
        logits = fit.apply(scores.logits[scores.rows_of(ids[rows])])
        both = as_answers(logits, scores.views)
        agreement = swap_agreement(both[:, 0], both[:, 1])
    return Predictions("final", name, None, "test", ids[rows], probs, agreement)


def from_truth(path: Path, labels: Labels) -> list[Predictions]:
    """Read the simulator's own probabilities of the labelled rows as stage ``bayes``.

    Raises:
        UserError: If the file lacks a labelled row.
    """
    table = read_table(path, columns=["id", *PROBABILITY_COLUMNS])
    probs = columns_of(table, PROBABILITY_COLUMNS)
    found = []
    for split in SPLITS:
        ids = labels.ids[labels.split == split]
        if len(ids):
            rows = find_rows(table.column("id").to_pylist(), ids)
            if (rows < 0).any():
                raise UserError(f"{path}: lacks row id {ids[rows < 0][0]}")
            own = {BOTH: probs[rows]}
            found.append(Predictions("bayes", "simulator", None, split, ids, own))
    return found


def gather(
    files: StageFiles,
    labels: Labels,
    scaling: ScalingSettings,
    *,
    teachers: Sequence[str],
    judges: Sequence[str],
    final_model: str,
) -> list[Predictions]:
    """Read what every stage predicts, in the order of the pipeline.

    Args:
        files: The files of all stages.
        labels: Labels of all rows that are scored.
        scaling: How the teachers' calibrations were fitted.
        teachers: Names of the teachers.
        judges: Names of the exported models.
        final_model: Name of the model that makes the submission.
    """
    # The final model is often one of the judges: its files are read once.
    logits, scaling_at = cache(read_logits), cache(read_scaling)
    found = from_baselines(files.baselines)
    by_teacher = pair_teacher_files(
        teachers, files.teacher_logits, files.teacher_calibrated
    )
    for name, paths in by_teacher.items():
        found += score_teacher(name, paths, labels, scaling)
    found += score_students("student_labels_only", files.labels_only)
    found += score_students("student", files.student_logits, files.weights)
    for name, path, calibration in zip(
        judges, files.judge_logits, files.judge_calibrations, strict=True
    ):
        found += score_judge(name, logits(path), scaling_at(calibration), labels)
    scores, fit = logits(files.final_logits), scaling_at(files.final_calibration)
    found.append(score_final(final_model, files.final, scores, fit))
    if files.truth is not None:
        found += from_truth(files.truth, labels)
    return found
