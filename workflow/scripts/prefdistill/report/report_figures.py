"""Read what the report's figures show, and draw them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from matplotlib.figure import Figure

from prefdistill.report.figures import (
    draw_confusion,
    draw_curves,
    draw_reliability,
    draw_stages,
    draw_swap,
    draw_weights,
)
from prefdistill.report.inputs import FigureFiles
from prefdistill.report.markdown_tables import (
    one_per_stage,
    read_curve,
    read_rows,
    rows_on_test,
    stage_order,
)
from prefdistill.report.stages import pair_teacher_files, read_all_labels
from prefdistill.scores.metrics import Labels
from prefdistill.scores.views import (
    PROBABILITY_COLUMNS,
    RAW_COLUMNS,
    SYMMETRISED_SCHEMA,
    columns_of,
    symmetrise,
)
from prefdistill.storage.logits import read_logits
from prefdistill.storage.records import read_json
from prefdistill.storage.tables import read_table

# Raw and calibrated (n, 3) probabilities, and (n,) labels.
Panel = tuple[np.ndarray, np.ndarray, np.ndarray]


def probability_panels(files: FigureFiles, teachers: Sequence[str]) -> dict[str, Panel]:
    """Read raw and calibrated probabilities on test with their labels, by model.

    Args:
        files: The files of the figures.
        teachers: Names of the teachers.

    Returns:
        One entry per teacher, with the rows of all its folds side by side, and one for
        the final model. Both views are averaged.
    """
    labels = read_all_labels(files.folds)
    by_teacher = pair_teacher_files(
        teachers, files.teacher_logits, files.teacher_calibrated
    )
    panels = {name: _teacher_panel(each, labels) for name, each in by_teacher.items()}
    return {**panels, "final": _final_panel(files.final, labels)}


def _teacher_panel(paths: Sequence[tuple[Path, Path]], labels: Labels) -> Panel:
    """Concatenate the test rows of a teacher's folds: raw, calibrated, labels."""
    parts = []
    for pair in paths:
        raw, scaled = map(read_logits, pair)
        rows = raw.select(raw.split == "test")
        scaled = scaled.select(scaled.rows_of(rows.ids))
        probs = [symmetrise(each.logits, each.views) for each in (rows, scaled)]
        parts.append((*probs, labels.of(rows.ids).label))
    raw, scaled, label = (np.concatenate(part) for part in zip(*parts, strict=True))
    return raw, scaled, label


def _final_panel(path: Path, labels: Labels) -> Panel:
    """Read the final model's test rows: raw, calibrated, labels."""
    table = read_table(path, SYMMETRISED_SCHEMA)
    table = table.filter(pc.equal(table.column("split"), "test"))
    ids = np.array(table.column("id").to_pylist(), dtype=np.str_)
    raw, scaled = columns_of(table, RAW_COLUMNS), columns_of(table, PROBABILITY_COLUMNS)
    return raw, scaled, labels.of(ids).label


def read_curves(
    paths: Sequence[Path], names: Sequence[str]
) -> dict[str, list[tuple[int, float]]]:
    """Read the loss curve of each training, by its name ``model/run``."""
    return dict(zip(names, map(read_curve, paths), strict=True))


def row_weight_spreads(paths: Sequence[Path]) -> dict[str, Mapping[str, float]]:
    """Read how the weights of training rows spread, by student.

    Args:
        paths: The ``rows.json`` of each student, in a folder of the student's name.

    Returns:
        Quantiles by share, such as ``"0.5"``. Students whose rows all weigh the same
        have none and are left out.
    """
    records = {path.parent.name: read_json(path) for path in paths}
    return {
        name: record["weight_quantiles"]
        for name, record in records.items()
        if "weight_quantiles" in record
    }


def draw_figures(
    files: FigureFiles,
    *,
    teachers: Sequence[str],
    judges: Sequence[str],
    runs: Sequence[str],
    n_bins: int,
) -> dict[str, Figure]:
    """Draw the figures of the stages and of their training, by name.

    Args:
        files: The files of the figures.
        teachers: Names of the teachers.
        judges: Names of the exported models.
        runs: The name of each curve, ``model/run``.
        n_bins: Bins of confidence.
    """
    rows = one_per_stage(rows_on_test(read_rows(files.scores), judges))
    panels = probability_panels(files, teachers)
    weights, spreads = read_json(files.weights), row_weight_spreads(files.rows)
    return {
        "stages": draw_stages(rows, stage_order(judges)),
        "reliability": draw_reliability(panels, n_bins),
        "confusion": draw_confusion(panels),
        "swap": draw_swap(rows),
        "curves": draw_curves(read_curves(files.curves, runs)),
        "weights": draw_weights(weights, spreads),
    }
