"""What every stage predicts, gathered from its files for the score table.

A row that a calibration was fitted on is predicted by a cross-fitted one, so that no
figure of the table comes from rows that the scored model or its calibration has seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from prefdistill.errors import UserError
from prefdistill.scores.calibration import (
    Scaling,
    cross_fit,
    cross_fit_views,
)
from prefdistill.scores.fold_weights import read_weights
from prefdistill.scores.metrics import Labels, read_labels, swap_agreement
from prefdistill.scores.scaling import read_scaling
from prefdistill.scores.views import (
    PROBABILITY_COLUMNS,
    RAW_COLUMNS,
    SYMMETRISED_SCHEMA,
    as_answers,
    average_logits,
    columns_of,
    symmetrise,
)
from prefdistill.storage.joining import find_rows
from prefdistill.storage.logits import Logits, read_logits
from prefdistill.storage.tables import read_table

SPLITS = ("dev", "select", "test")
BOTH = "AB+BA"


@dataclass(frozen=True)
class StageFiles:
    """The files that hold what every stage predicts.

    Attributes:
        folds: The fold files, for the labels.
        baselines: ``baselines.parquet``.
        teachers: For each teacher, raw and calibrated logits of each fold.
        students: The logits of each fold's student.
        labels_only: The same of students trained on labels alone, or empty.
        weights: The ensemble's ``weights.json``.
        judges: For each exported model its logits and its calibration.
        final: Name of the model that makes the submission.
        final_files: Its symmetrised predictions, its logits, and its calibration.
        truth: The simulator's probabilities, if the data are simulated.
    """

    folds: Sequence[Path]
    baselines: Path
    teachers: Mapping[str, Sequence[tuple[Path, Path]]]
    students: Sequence[Path]
    labels_only: Sequence[Path]
    weights: Path
    judges: Mapping[str, tuple[Path, Path]]
    final: str
    final_files: tuple[Path, Path, Path]
    truth: Path | None

    @classmethod
    def of(
        cls, source: Any, teachers: Sequence[str], judges: Sequence[str], final: str
    ) -> "StageFiles":
        """Take the files from the named inputs of the rule ``evaluate``."""

        def paths(name: str) -> list[Path]:
            """A named input as paths, also where it is one file or none."""
            value = source.get(name, [])
            return [Path(p) for p in ([value] if isinstance(value, str) else value)]

        both = zip(paths("judges"), paths("judge_calibrations"), strict=True)
        return cls(
            folds=paths("folds"),
            baselines=Path(source.baselines),
            teachers=pair_teacher_files(teachers, paths("logits"), paths("calibrated")),
            students=paths("students"),
            labels_only=paths("labels_only"),
            weights=Path(source.weights),
            judges=dict(zip(judges, both, strict=True)),
            final=final,
            final_files=(
                Path(source.final),
                Path(source.final_logits),
                Path(source.final_calibration),
            ),
            truth=next(iter(paths("truth")), None),
        )


def pair_teacher_files(
    teachers: Sequence[str], raw: Sequence[Path], calibrated: Sequence[Path]
) -> dict[str, list[tuple[Path, Path]]]:
    """Pair raw and calibrated logits, listed teacher by teacher, under their names."""
    pairs = list(zip(map(Path, raw), map(Path, calibrated), strict=True))
    n_folds = len(pairs) // max(len(teachers), 1)
    return {
        name: pairs[place * n_folds : (place + 1) * n_folds]
        for place, name in enumerate(teachers)
    }


@dataclass(frozen=True)
class Predictions:
    """One model's probabilities of the rows of one split.

    Attributes:
        stage: Stage of the pipeline, such as ``teacher_calibrated``.
        model: Name of the model within the stage.
        fold: Its fold, or None for a model of no fold or of all folds together.
        split: dev, select or test.
        ids: ``(n,)`` unicode row ids.
        probs: For each view ``(n, 3)`` probabilities of (A, B, tie); a model that is
            only known averaged over both orders has the one key ``AB+BA``.
        agreement: Swap agreement, where ``probs`` does not hold both views.
    """

    stage: str
    model: str
    fold: int | None
    split: str
    ids: np.ndarray
    probs: dict[str, np.ndarray]
    agreement: float | None = None

    def averaged(self) -> np.ndarray:
        """Mean probabilities over the views, ``(n, 3)``."""
        return np.mean(list(self.probs.values()), axis=0)

    def probs_of(self, ids: np.ndarray) -> np.ndarray:
        """Mean probabilities over the views of the given rows, ``(n_ids, 3)``.

        Raises:
            UserError: If a row is missing.
        """
        rows = find_rows(self.ids, ids)
        if (rows < 0).any():
            missing = ids[rows < 0][0]
            raise UserError(f"{self.stage} has no prediction of row id {missing}")
        return self.averaged()[rows]

    def by_views(self) -> list[tuple[str, np.ndarray, float | None]]:
        """Each view, then their average: name, probabilities, swap agreement."""
        rows = [(view, probs, self.agreement) for view, probs in self.probs.items()]
        if len(self.probs) == 2:
            agreement = swap_agreement(*self.probs.values())
            rows.append(("+".join(self.probs), self.averaged(), agreement))
        return rows


def from_logits(
    stage: str, model: str, fold: int | None, scores: Logits
) -> list[Predictions]:
    """Turn a model's logits into predictions on each split that it may be scored on."""
    found = []
    for split in SPLITS:
        rows = scores.select(scores.split == split)
        if not len(rows.ids):
            continue
        single = {
            view: symmetrise(rows.logits[:, [place]], [view])
            for place, view in enumerate(scores.views)
        }
        found.append(Predictions(stage, model, fold, split, rows.ids, single))
    return found


def read_all_labels(fold_paths: Sequence[Path]) -> Labels:
    """Labels of all rows that may be scored: each fold's dev rows, select and test."""
    tables = [
        labels.rows(labels.split != "train") for labels in map(read_labels, fold_paths)
    ]
    parts = [
        np.concatenate([getattr(table, field.name) for table in tables])
        for field in fields(Labels)
    ]
    _, first = np.unique(parts[0], return_index=True)
    return Labels(*parts).rows(first)


def calibrated_judge(scores: Logits, fit: Scaling, labels: Labels) -> Logits:
    """A judge's calibrated logits; cross-fitted on select, where the fit was made."""
    scaled = fit.apply(scores.logits)
    rows = np.flatnonzero(scores.split == "select")
    if len(rows):
        known = labels.of(scores.ids[rows])
        answers = as_answers(scores.logits[rows], scores.views)
        settings = {"method": fit.method, "tied": fit.tied}
        fitted = cross_fit(answers, known.label, known.group, **settings)
        scaled[rows] = as_answers(fitted, scores.views)
    return scores.replace_logits(scaled)


def calibrated_teacher(
    raw: Logits, calibrated: Logits, labels: Labels, settings: dict[str, Any]
) -> Logits:
    """A teacher's calibrated logits; cross-fitted on dev, where the fit was made."""
    rows = np.flatnonzero(calibrated.split == "dev")
    known = labels.of(calibrated.ids[rows])
    dev = raw.logits[raw.rows_of(calibrated.ids[rows])]
    logits = calibrated.logits.copy()
    logits[rows] = cross_fit_views(dev, known, raw.views, **settings)
    return calibrated.replace_logits(logits)


def score_teacher(
    name: str,
    paths: Sequence[tuple[Path, Path]],
    labels: Labels,
    calibration: dict[str, Any],
) -> list[Predictions]:
    """A teacher's predictions, raw and calibrated, from its logits of every fold."""
    settings = {key: calibration[key] for key in ("method", "tied")}
    found = []
    for fold, (raw_path, calibrated_path) in enumerate(paths):
        raw, calibrated = read_logits(raw_path), read_logits(calibrated_path)
        scaled = calibrated_teacher(raw, calibrated, labels, settings)
        found += from_logits("teacher", name, fold, raw)
        found += from_logits("teacher_calibrated", name, fold, scaled)
    return found


def score_students(
    stage: str, paths: Sequence[Path], weights_path: Path | None = None
) -> list[Predictions]:
    """The fold students, and as stage ``adapters`` the mean of their logits.

    Args:
        stage: Stage of the fold students.
        paths: Each fold's logits.
        weights_path: The ensemble's weights for that mean, or None to leave it out.
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
    name: str, path: Path, calibration_path: Path, labels: Labels
) -> list[Predictions]:
    """Read an exported model's predictions, raw and with its own calibration."""
    scores = read_logits(path)
    fit = read_scaling(calibration_path)
    scaled = calibrated_judge(scores, fit, labels)
    return [
        *from_logits(name, name, None, scores),
        *from_logits(f"{name}_calibrated", name, None, scaled),
    ]


def from_baselines(path: Path, splits: Sequence[str] = SPLITS) -> list[Predictions]:
    """The predictions of ``baselines.parquet`` for rows of these splits."""
    keys = ("stage", "fold", "split", "id")
    table = read_table(path, columns=[*keys, *PROBABILITY_COLUMNS])
    stage, fold, split, ids = (
        np.array(table.column(name).to_pylist()) for name in keys
    )
    probs = columns_of(table, PROBABILITY_COLUMNS)
    found = []
    for name in dict.fromkeys(stage.tolist()):
        for k in np.unique(fold):
            for part in splits:
                rows = (stage == name) & (fold == k) & (split == part)
                if rows.any():
                    number = None if k < 0 else int(k)
                    both = {BOTH: probs[rows]}
                    found.append(Predictions(name, name, number, part, ids[rows], both))
    return found


def trees_probabilities(path: Path, ids: np.ndarray) -> np.ndarray:
    """Read the trees' probabilities of rows that they were not trained on, ``(n, 3)``.

    Args:
        path: ``baselines.parquet``.
        ids: ``(n,)`` ids of rows of select, test or unlabelled pairs.

    Raises:
        UserError: If the file lacks one of the rows.
    """
    found = from_baselines(path, ("select", "test", "unlabelled"))
    parts = [one for one in found if one.stage == "trees"]
    known = [name for one in parts for name in one.ids.tolist()]
    rows = find_rows(known, ids)
    if (rows < 0).any():
        raise UserError(f"{path}: the trees lack row id {ids[rows < 0][0]}")
    return np.concatenate([one.averaged() for one in parts])[rows]


def score_final(
    name: str, symmetrised_path: Path, logits_path: Path, calibration_path: Path
) -> Predictions:
    """The test predictions of the submission's model, just as it makes them."""
    table = read_table(symmetrised_path, SYMMETRISED_SCHEMA)
    ids = np.array(table.column("id").to_pylist(), dtype=np.str_)
    rows = np.array(table.column("split").to_pylist()) == "test"
    scores = read_logits(logits_path)
    probs = {"+".join(scores.views): columns_of(table, PROBABILITY_COLUMNS)[rows]}
    agreement = None
    if len(scores.views) == 2:
        fit = read_scaling(calibration_path)
        logits = fit.apply(scores.logits[scores.rows_of(ids[rows])])
        both = as_answers(logits, scores.views)
        agreement = swap_agreement(both[:, 0], both[:, 1])
    return Predictions("final", name, None, "test", ids[rows], probs, agreement)


def from_truth(path: Path, labels: Labels) -> list[Predictions]:
    """The simulator's own probabilities of the labelled rows, stage ``bayes``."""
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
    files: StageFiles, labels: Labels, calibration: dict[str, Any]
) -> list[Predictions]:
    """Read what every stage predicts, in the order of the pipeline.

    Args:
        files: Where it lies.
        labels: Labels of all rows that are scored.
        calibration: The settings of the teachers' calibration.
    """
    found = from_baselines(files.baselines)
    for name, paths in files.teachers.items():
        found += score_teacher(name, paths, labels, calibration)
    found += score_students("student_labels_only", files.labels_only)
    found += score_students("student", files.students, files.weights)
    for name, (path, fit_path) in files.judges.items():
        found += score_judge(name, path, fit_path, labels)
    found.append(score_final(files.final, *files.final_files))
    if files.truth is not None:
        found += from_truth(files.truth, labels)
    return found


def reliability_panels(
    teacher_paths: Mapping[str, Sequence[tuple[Path, Path]]],
    final_path: Path,
    labels: Labels,
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Raw and calibrated probabilities on test with their labels, by title.

    The fold models of a teacher are laid end to end, both views averaged.
    """
    panels = {}
    for name, paths in teacher_paths.items():
        parts = []
        for pair in paths:
            raw, scaled = map(read_logits, pair)
            rows = raw.select(raw.split == "test")
            scaled = scaled.select(scaled.rows_of(rows.ids))
            probs = [symmetrise(each.logits, each.views) for each in (rows, scaled)]
            parts.append((*probs, labels.of(rows.ids).label))
        panels[name] = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    table = read_table(final_path, SYMMETRISED_SCHEMA)
    table = table.filter(pc.equal(table.column("split"), "test"))
    ids = np.array(table.column("id").to_pylist(), dtype=np.str_)
    raw, scaled = columns_of(table, RAW_COLUMNS), columns_of(table, PROBABILITY_COLUMNS)
    panels["final"] = (raw, scaled, labels.of(ids).label)
    return panels
