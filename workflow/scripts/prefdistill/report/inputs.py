"""Name the files that the report's jobs read.

A field has the name of an input of its rule, which ``running.binding`` fills in. This
module imports no library, so that a job's script starts fast.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StageFiles:
    """The files that hold what every stage predicts (rule ``evaluate``).

    Attributes:
        folds: The fold files, for the labels.
        baselines: ``baselines.parquet``.
        teacher_logits: Raw logits, teacher by teacher and fold by fold.
        teacher_calibrated: Calibrated logits, in the same order.
        student_logits: The logits of each fold's student.
        labels_only: The same of students trained on labels alone, or empty.
        weights: The ensemble's ``weights.json``.
        judge_logits: The logits of each exported model.
        judge_calibrations: The ``calibration.json`` of each exported model.
        final: Symmetrised predictions of the model that makes the submission.
        final_logits: Its logits.
        final_calibration: Its ``calibration.json``.
        truth: The simulator's probabilities, if the data are simulated.
    """

    folds: list[Path]
    baselines: Path
    teacher_logits: list[Path]
    teacher_calibrated: list[Path]
    student_logits: list[Path]
    labels_only: list[Path]
    weights: Path
    judge_logits: list[Path]
    judge_calibrations: list[Path]
    final: Path
    final_logits: Path
    final_calibration: Path
    truth: Path | None


@dataclass(frozen=True)
class FigureFiles:
    """The files that the figures show (rule ``plot_report``).

    Attributes:
        scores: ``scores.csv``.
        folds: The fold files, for the labels.
        teacher_logits: Raw logits, teacher by teacher and fold by fold.
        teacher_calibrated: Calibrated logits, in the same order.
        final: Symmetrised predictions of the model that makes the submission.
        curves: The ``train.jsonl`` of each training.
        weights: The ensemble's ``weights.json``.
        rows: The ``rows.json`` of each student: the weights of its training rows.
    """

    scores: Path
    folds: list[Path]
    teacher_logits: list[Path]
    teacher_calibrated: list[Path]
    final: Path
    curves: list[Path]
    weights: Path
    rows: list[Path]


@dataclass(frozen=True)
class SummaryFiles:
    """The files that the summary shows or points at (rule ``summarise_report``).

    Attributes:
        scores: ``scores.csv``.
        steps: ``steps.csv``.
        cleaning: ``cleaning.json``.
        teacher_calibrations: ``calibration.json`` by teacher and fold.
        judge_calibrations: ``calibration.json`` of each exported model.
        figures: The figures.
        submission: ``submission.csv``, or None where nothing is to be predicted.
    """

    scores: Path
    steps: Path
    cleaning: Path
    teacher_calibrations: list[Path]
    judge_calibrations: list[Path]
    figures: list[Path]
    submission: Path | None


@dataclass(frozen=True)
class PageFiles:
    """The files that the HTML pages show (rule ``write_pages``).

    Attributes:
        scores: ``scores.csv``.
        steps: ``steps.csv``.
        cleaning: ``cleaning.json``.
        folds: ``folds.json``.
        lengths: ``lengths.json``.
        teacher_calibrations: ``calibration.json`` by teacher and fold.
        judge_calibrations: ``calibration.json`` of each exported model.
        weights: The ensemble's ``weights.json``.
        fingerprinted: Data and weights whose digests identify the run.
    """

    scores: Path
    steps: Path
    cleaning: Path
    folds: Path
    lengths: Path
    teacher_calibrations: list[Path]
    judge_calibrations: list[Path]
    weights: Path
    fingerprinted: list[Path]
