"""What a student learns from: teachers' logits by row, and whether to trust them."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prefdistill.data.prompts import text_digest
from prefdistill.running.job import UserError
from prefdistill.running.rule_lookup import rerun_advice
from prefdistill.scores.scaling import read_scaling
from prefdistill.storage.joining import find_rows
from prefdistill.storage.tables import VIEWS, Logits, read_json, read_logits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherFiles:
    """What the teachers leave for a student, by teacher.

    Attributes:
        logits: To learn from: of the student's fold alone, or of every fold in order.
        gates: ``calibration.json`` beside them; empty without a gate.
        unseen: Calibrated logits of every fold, to judge each row by the teachers that
            left it out; empty if that is not asked for.
        unlabelled: Logits of the unlabelled pairs by the teacher of the student's fold;
            empty without pseudo-labels.
        scalings: ``calibration.json`` for those; empty where raw logits are wanted.
    """

    logits: dict[str, list[Path]]
    gates: dict[str, list[Path]] = field(default_factory=dict)
    unseen: dict[str, list[Path]] = field(default_factory=dict)
    unlabelled: dict[str, list[Path]] = field(default_factory=dict)
    scalings: dict[str, list[Path]] = field(default_factory=dict)

    def all(self) -> list[Path]:
        """Every file that has a part in the student's result."""
        kinds = (self.logits, self.unseen, self.unlabelled, self.scalings)
        return [path for kind in kinds for paths in kind.values() for path in paths]


def check_gates(gates: dict[str, list[Path]], policy: str) -> None:
    """Refuse, or warn of, a teacher that has no clear out-of-fold information gain.

    Args:
        gates: Teacher to its ``calibration.json`` files, whose ``gate`` holds
            ``information_gain`` in nats with interval ``low``, ``high``, and
            ``passed``.
        policy: ``refuse``, ``warn`` or ``off``.

    Raises:
        UserError: If a teacher fails under ``refuse``.
    """
    for teacher, paths in gates.items():
        for path in paths if policy != "off" else []:
            gate = read_json(path, ["gate"])["gate"]
            if gate["passed"]:
                continue
            line = (
                f"{path}: teacher {teacher} gains {gate['information_gain']:.4f} nats "
                f"on rows it has not seen (interval {gate['low']:.4f} to "
                f"{gate['high']:.4f}), not clearly above 0"
            )
            if policy == "refuse":
                raise UserError(
                    f"{line}; train it longer, leave it out, or set "
                    "distillation.teacher_gate to warn"
                )
            logger.warning("%s; going on, as teacher_gate is warn", line)


def out_of_fold(folds: list[Logits], own: Logits) -> Logits:
    """Each row's logits from the teacher that left it out.

    Rows of ``own`` that are dev in another fold take that fold's logits. The others
    keep ``own``'s: the extra rows, which every teacher trained on.
    """
    logits = own.logits.copy()
    n_replaced = 0
    for scores in folds:
        dev = scores.select(scores.split == "dev")
        rows = find_rows(own.ids, dev.ids)
        left_out = (rows >= 0) & (own.split[rows] == "train")
        logits[rows[left_out]] = dev.logits[left_out]
        n_replaced += int(left_out.sum())
    logger.info("%d rows take their out-of-fold teacher's logits", n_replaced)
    return own.replace_logits(logits)


def check_made_with(files: TeacherFiles, text: dict[str, Any]) -> None:
    """Check that all logits are of rows as the student reads them.

    Args:
        files: The teachers'.
        text: The ``text`` settings that they must have been made with.

    Raises:
        UserError: If template, truncation or order of the views differ.
    """
    wanted = {
        "max_length": (text["max_length"], "max_length"),
        "text": (text_digest(text), "template or truncation"),
        "views": (list(VIEWS), "order of the views"),
    }
    for path in files.all():
        meta = read_logits(path).meta if path.suffix == ".npz" else None
        for key, (value, what) in wanted.items():
            if meta is not None and meta.get(key) != value:
                raise UserError(
                    f"{path}: its logits were made with another {what} "
                    f"({meta.get(key)}, now {value}); {rerun_advice(path)}"
                )


def teacher_logits(
    ids: np.ndarray, teachers: dict[str, list[Path]], fold: int, labels: str
) -> tuple[np.ndarray, np.ndarray]:
    """Teachers' logits of both orders, joined to rows by id.

    Args:
        ids: ``(n,)`` row ids of the student.
        teachers: Teacher to its logits files: one of the student's fold under
            ``in_fold``, one of every fold, in order, under ``out_of_fold``.
        fold: The student's fold.
        labels: ``in_fold`` or ``out_of_fold``.

    Returns:
        ``(n, n_teachers, 2, 3)`` float32 logits, orders AB and BA, zero where missing,
        and ``(n, n_teachers)`` bool, true where not missing.

    Raises:
        UserError: If a teacher has logits of none of the rows.
    """
    logits = np.zeros((len(ids), len(teachers), 2, 3), dtype=np.float32)
    found = np.zeros((len(ids), len(teachers)), dtype=bool)
    for column, (teacher, paths) in enumerate(teachers.items()):
        folds = [read_logits(path) for path in paths]
        scores = folds[0]
        if labels == "out_of_fold":
            scores = out_of_fold(folds, folds[fold])
        places = find_rows(scores.ids, ids)
        found[:, column] = places >= 0
        if not found[:, column].any():
            raise UserError(f"{paths[0]}: holds none of the student's rows")
        logits[found[:, column], column] = scores.logits[places[places >= 0]]
        n_missing = int((places < 0).sum())
        if n_missing:
            logger.warning(
                "teacher %s scored %d of %d rows; the others are learnt without it",
                teacher, len(ids) - n_missing, len(ids),
            )  # fmt: skip
    return logits, found


def pseudo_logits(ids: np.ndarray, files: TeacherFiles) -> np.ndarray:
    """The fold's teachers' logits of unlabelled rows, scaled as the student's are.

    Args:
        ids: ``(n,)`` ids of unlabelled rows.
        files: ``unlabelled`` and ``scalings`` are read.

    Returns:
        ``(n, n_teachers, 2, 3)`` float32, orders AB and BA.

    Raises:
        UserError: If a teacher has not scored one of the rows.
    """
    columns = []
    for teacher, (path,) in files.unlabelled.items():
        scores = read_logits(path)
        logits = scores.logits[scores.rows_of(ids)]
        for scaling in files.scalings.get(teacher, []):
            logits = read_scaling(scaling).apply(logits)
        columns.append(logits.astype(np.float32))
    return np.stack(columns, axis=1)


def check_weights(weights: dict[str, float], n_teachers: int) -> None:
    """Make sure that the loss has a term left.

    Raises:
        UserError: If there is nothing to learn from.
    """
    if weights["ce"] + n_teachers * (weights["kl"] + weights["cosine"]) <= 0:
        raise UserError(
            "distillation.weights: ce is 0 and no teacher counts; raise one of them"
        )
