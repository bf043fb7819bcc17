"""Read the logits that teachers left for a student, and join them to its rows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prefdistill.data.prompts import text_digest
from prefdistill.errors import DamagedFile, UserError
from prefdistill.scores.scaling import Scaling, scaling_of
from prefdistill.settings import DistillationSettings, LossWeights, TextSettings
from prefdistill.storage.joining import find_rows
from prefdistill.storage.logits import VIEWS, Logits, read_logits
from prefdistill.storage.records import read_json
from prefdistill.storage.whole_files import reading

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherFiles:
    """The files that the teachers leave for the student of one fold.

    ``run_job`` fills it by name. Each list is sorted by teacher, with as many files for
    each.

    Attributes:
        teachers: The teachers' names.
        fold: The student's fold.
        logits: Logits to learn from, of the student's fold or of every fold in order.
        gates: ``calibration.json`` beside them; empty without a gate.
        unseen: Calibrated logits of every fold, to weigh each row by the teachers that
            were not trained on it; empty if rows are not weighed.
        unlabelled: Logits of the unlabelled pairs by the teacher of the student's fold;
            empty without pseudo-labels.
        scalings: ``calibration.json`` for those; empty if raw logits are wanted.
    """

    teachers: list[str]
    fold: int
    logits: list[Path]
    gates: list[Path] = field(default_factory=list)
    unseen: list[Path] = field(default_factory=list)
    unlabelled: list[Path] = field(default_factory=list)
    scalings: list[Path] = field(default_factory=list)

    def sources(self) -> list[Path]:
        """Return every file that influences the student's result."""
        return [*self.logits, *self.unseen, *self.unlabelled, *self.scalings]

    def of_teacher(self, kind: str, number: int) -> Sequence[Path]:
        """Return the part of a list that belongs to one teacher.

        Args:
            kind: Name of the list.
            number: The teacher's place in ``teachers``.
        """
        paths = getattr(self, kind)
        n_each = len(paths) // len(self.teachers)
        return paths[number * n_each : (number + 1) * n_each]


@dataclass(frozen=True)
class Teacher:
    """The logits that one teacher left for a student.

    Attributes:
        name: The teacher's name.
        source: The first file of its logits, for error messages.
        scores: The logits to learn from.
        unseen: Its calibrated logits of every fold; empty if rows are not weighed.
        unlabelled: Its logits of the unlabelled pairs; None without pseudo-labels.
        scaling: Calibration of ``unlabelled``; None if raw logits are wanted.
    """

    name: str
    source: Path
    scores: Logits
    unseen: Sequence[Logits] = ()
    unlabelled: Logits | None = None
    scaling: Scaling | None = None


def read_teachers(
    files: TeacherFiles, text: TextSettings, settings: DistillationSettings
) -> list[Teacher]:
    """Read and check the files of all teachers; each file is read once.

    Args:
        files: The teachers' files.
        text: The settings that their logits must have been made with.
        settings: Which logits to learn from, and whether a failed gate is an error.

    Raises:
        UserError: If a file is damaged, if a teacher fails its gate under ``refuse``,
            or if its logits were made with other ``text`` settings.
    """
    policy = settings.teacher_gate
    gates = files.gates if policy != "off" else ()
    # A calibration file may be gate and scaling at once, and an archive may serve both
    # to learn from and to weigh rows by.
    records = {p: read_json(p) for p in dict.fromkeys([*gates, *files.scalings])}
    for number, name in enumerate(files.teachers if gates else ()):
        for path in files.of_teacher("gates", number):
            check_gate(path, records[path], name, policy)
    archives = {}
    for path in dict.fromkeys([*files.logits, *files.unseen, *files.unlabelled]):
        archives[path] = read_logits(path)
        check_made_with(path, archives[path].meta, text)

    def of(number: int) -> Teacher:
        paths = files.of_teacher("logits", number)
        scores = [archives[path] for path in paths]
        chosen = scores[0]
        if settings.labels == "out_of_fold":
            chosen = out_of_fold(scores, scores[files.fold])
        unlabelled = files.of_teacher("unlabelled", number)
        scalings = files.of_teacher("scalings", number)
        return Teacher(
            name=files.teachers[number],
            source=paths[0],
            scores=chosen,
            unseen=[archives[path] for path in files.of_teacher("unseen", number)],
            unlabelled=archives[unlabelled[0]] if unlabelled else None,
            scaling=_scaling(scalings[0], records) if scalings else None,
        )

    return [of(number) for number in range(len(files.teachers))]


def _scaling(path: Path, records: dict[Path, Any]) -> Scaling:
    with reading(path, "a calibration"):
        return scaling_of(records[path])


def check_gate(path: Path, record: Any, teacher: str, policy: str) -> None:
    """Refuse a teacher without a clear out-of-fold information gain, or warn of it.

    Args:
        path: The teacher's ``calibration.json``.
        record: Its content, whose ``gate`` holds ``information_gain`` in nats with
            interval ``low``, ``high``, and ``passed``.
        teacher: The teacher's name.
        policy: ``refuse`` or ``warn``.

    Raises:
        UserError: If the file has no gate, or the teacher fails under ``refuse``.
    """
    with reading(path, "a calibration"):
        gate = record["gate"]
        line = (
            f"{path}: teacher {teacher} gains {gate['information_gain']:.4f} nats "
            f"on rows it has not seen (interval {gate['low']:.4f} to "
            f"{gate['high']:.4f}), not clearly above 0"
        )
        passed = gate["passed"]
    if passed:
        return
    if policy == "refuse":
        raise UserError(
            f"{line}; train it longer, leave it out, or set "
            "distillation.teacher_gate to warn"
        )
    logger.warning("%s; going on, as teacher_gate is warn", line)


def check_made_with(path: Path, meta: dict[str, Any], text: TextSettings) -> None:
    """Check that logits were computed from the texts that the student reads.

    Args:
        path: The logits' file.
        meta: Its ``meta``, which says what the logits were made with.
        text: The settings that they must have been made with.

    Raises:
        DamagedFile: If template, truncation or order of the views differ.
    """
    wanted = {
        "max_length": (text.max_length, "max_length"),
        "text": (text_digest(text), "template or truncation"),
        "views": (list(VIEWS), "order of the views"),
    }
    for key, (value, what) in wanted.items():
        if meta.get(key) != value:
            raise DamagedFile(
                path,
                f"its logits were made with another {what} "
                f"({meta.get(key)}, now {value})",
            )


def out_of_fold(folds: Sequence[Logits], own: Logits) -> Logits:
    """Take each row's logits from the teacher that was not trained on it.

    Train rows of ``own`` that are dev in another fold take that fold's logits. Extra
    rows, which every teacher was trained on, keep the logits of ``own``.

    Args:
        folds: A teacher's logits of every fold.
        own: Those of the student's fold.
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


def teacher_logits(
    ids: np.ndarray, teachers: Sequence[Teacher]
) -> tuple[np.ndarray, np.ndarray]:
    """Join the teachers' logits of both orders to rows by id.

    Args:
        ids: ``(n,)`` row ids of the student.
        teachers: Its teachers.

    Returns:
        ``(n, n_teachers, 2, 3)`` float32 logits, orders AB and BA, zero where missing,
        and ``(n, n_teachers)`` bool, true where not missing.

    Raises:
        UserError: If a teacher has logits of none of the rows, of another fold, or, as
            one that scored all rows, lacks some.
    """
    logits = np.zeros((len(ids), len(teachers), 2, 3), dtype=np.float32)
    found = np.zeros((len(ids), len(teachers)), dtype=bool)
    for column, teacher in enumerate(teachers):
        scores = teacher.scores
        places = find_rows(scores.ids, ids)
        found[:, column] = places >= 0
        if not found[:, column].any():
            raise UserError(f"{teacher.source}: holds none of the student's rows")
        seen = scores.split[places[places >= 0]]
        strange = np.flatnonzero(seen != "train")
        if len(strange):
            raise DamagedFile(
                teacher.source,
                f"row id {ids[places >= 0][strange[0]]} is {seen[strange[0]]} there "
                "and train in the student's fold, so it is of another fold",
            )
        logits[found[:, column], column] = scores.logits[places[places >= 0]]
        n_missing = int((places < 0).sum())
        if n_missing and not any(scores.meta.get("sample", ["unknown"])):
            raise DamagedFile(
                teacher.source,
                f"lacks {n_missing} of the student's rows, such as id "
                f"{ids[places < 0][0]}, though its teacher scored all rows of its fold",
            )
        if n_missing:
            logger.warning(
                "teacher %s scored %d of %d rows; the others are learnt without it",
                teacher.name, len(ids) - n_missing, len(ids),
            )  # fmt: skip
    return logits, found


def pseudo_logits(ids: np.ndarray, teachers: Sequence[Teacher]) -> np.ndarray:
    """Return the teachers' logits of unlabelled rows, calibrated if they should be.

    Args:
        ids: ``(n,)`` ids of unlabelled rows.
        teachers: Each with its logits of unlabelled rows.

    Returns:
        ``(n, n_teachers, 2, 3)`` float32, orders AB and BA.

    Raises:
        UserError: If a teacher has not scored one of the rows.
    """
    columns = []
    for teacher in teachers:
        scores = teacher.unlabelled
        logits = scores.logits[scores.rows_of(ids)]
        if teacher.scaling is not None:
            logits = teacher.scaling.apply(logits)
        columns.append(logits.astype(np.float32))
    return np.stack(columns, axis=1)


def check_weights(weights: LossWeights, n_teachers: int) -> None:
    """Check that the loss has at least one term of positive weight.

    Raises:
        UserError: If it has none.
    """
    if weights.ce + n_teachers * weights.per_teacher <= 0:
        raise UserError(
            "distillation.weights: ce is 0 and no teacher counts; raise one of them"
        )
