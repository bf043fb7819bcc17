"""Write the report's tables and its summary as Markdown."""

import csv
import json
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from prefdistill.report.markdown_text import escape
from prefdistill.storage.records import read_json
from prefdistill.storage.whole_files import reading

FIRST_STAGES = (
    "prior",
    "length",
    "trees",
    "teacher",
    "teacher_calibrated",
    "student_labels_only",
    "student",
    "adapters",
)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read ``scores.csv`` or ``steps.csv``; numbers as floats, empty cells as None.

    Raises:
        UserError: If the file is not whole.
    """
    with reading(path, "a whole CSV file"):
        text = path.read_text(encoding="utf-8")
        # A file that was cut short may end inside a number, which would still parse.
        if not text.endswith("\n"):
            raise ValueError("its last line has no end")
        header, *rows = csv.reader(StringIO(text, newline=""))
        return [dict(zip(header, map(_parsed, row), strict=True)) for row in rows]


def _parsed(cell: str) -> str | float | None:
    if cell == "":
        return None
    try:
        return float(cell)
    except ValueError:
        return cell


def read_records(names: Sequence[str], paths: Sequence[Path]) -> dict[str, Any]:
    """Read one JSON file per name.

    Raises:
        UserError: If a file is not whole JSON.
    """
    return dict(zip(names, map(read_json, paths), strict=True))


def stage_order(judges: Sequence[str]) -> list[str]:
    """List all stages in the order of the pipeline, ``bayes`` last."""
    exported = [stage for name in judges for stage in (name, f"{name}_calibrated")]
    return [*FIRST_STAGES, *exported, "final", "bayes"]


def rows_on_test(
    scores: Sequence[dict[str, Any]], judges: Sequence[str]
) -> list[dict[str, Any]]:
    """Select the score rows on test over all folds and views, in the pipeline's order.

    Several teachers are followed by their mean.
    """
    # The rows of `final` have one name of views: those that the final model averages.
    views = max(str(row["views"]) for row in scores if row["stage"] == "final")
    order = {stage: place for place, stage in enumerate(stage_order(judges))}
    rows = [
        row
        for row in scores
        if row["split"] == "test"
        and row["fold"] is None
        and row["stage"] in order
        and row["views"] in (views, "AB+BA")
    ]
    return sorted(rows, key=lambda row: order[row["stage"]])


def one_per_stage(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Select the last row of each stage, which is the mean of several teachers."""
    return list({row["stage"]: row for row in rows}.values())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write a Markdown table with padded columns, readable on a terminal too.

    Texts are escaped, so a cell cannot hold Markdown.
    """
    cells = [[_shown(cell) for cell in row] for row in (header, *rows)]
    # Markdown needs two characters for the line under a header of numbers: "-:".
    widths = [max(2, *(len(row[c]) for row in cells)) for c in range(len(header))]
    numeric = [
        all(isinstance(row[c], int | float | None) for row in rows)
        for c in range(len(header))
    ]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        + " |"
        for row in cells
    ]
    rule = [
        "-" * (width - 1) + (":" if right else "-")
        for width, right in zip(widths, numeric, strict=True)
    ]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def _shown(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.4f}" if isinstance(cell, float) else escape(str(cell))


def scores_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Write the score table."""
    header = ["stage", "model", "views", "log loss", "95 % low", "high"]
    names = ["stage", "model", "views", "log_loss", "log_loss_low", "log_loss_high"]
    more = ["accuracy", "brier", "ece", "swap_agreement"]
    return markdown_table(
        [*header, "accuracy", "Brier", "ECE", "swap agr."],
        [[row[name] for name in [*names, *more]] for row in rows],
    )


def step_table(steps: Sequence[dict[str, Any]], split: str) -> str:
    """Write the paired differences on one split."""
    names = ["from", "to", "n", "difference", "low", "high"]
    rows = [row for row in steps if row["split"] == split]
    return markdown_table(
        ["before", "after", "rows", "difference", "95 % low", "high"],
        [[int(row[n]) if n == "n" else row[n] for n in names] for row in rows],
    )


def cleaning_table(cleaning: Mapping[str, Any]) -> str:
    """Write how many rows came in, were dropped by reason, and stayed, by source."""
    sources = list(cleaning["n_in"])

    def row(name: str, counts: Mapping[str, int]) -> list[Any]:
        return [name, *[int(counts.get(source, 0)) for source in sources]]

    dropped = [row(f"dropped: {why}", n) for why, n in cleaning["dropped"].items()]
    return markdown_table(
        ["rows", *sources],
        [row("read", cleaning["n_in"]), *dropped, row("kept", cleaning["n_out"])],
    )


def calibration_table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the scales, shifts and cross-fitted effect of every calibration."""
    rows = [
        [
            name,
            ", ".join(f"{v:.3f}" for v in record["a"]),
            ", ".join(f"{v:.3f}" for v in record["b"]),
            record["nll_before"],
            record["nll_after"],
            record["ece_before"],
            record["ece_after"],
        ]
        for name, record in records.items()
    ]
    header = [
        "model",
        "scales a",
        "shifts b",
        "log loss before",
        "after",
        "ECE before",
        "after",
    ]
    return markdown_table(header, rows)


def gate_table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Write each teacher's information gain on dev, and whether it passes the gate."""
    rows = [
        [
            name,
            record["gate"]["information_gain"],
            record["gate"]["low"],
            record["gate"]["high"],
            "passed" if record["gate"]["passed"] else "not above 0",
        ]
        for name, record in records.items()
    ]
    header = ["teacher", "information gain", "95 % low", "high", "gate"]
    return markdown_table(header, rows)


def read_curve(path: Path) -> list[tuple[int, float]]:
    """Read ``(step, loss)`` of each step with a finite loss from a ``train.jsonl``.

    Raises:
        UserError: If the file is not whole.
    """
    with reading(path, "whole JSON lines"):
        records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return [(r["step"], r["loss"]) for r in records if r["loss"] is not None]


def summary_text(
    scores: Sequence[dict[str, Any]],
    steps: Sequence[dict[str, Any]],
    cleaning: Mapping[str, Any],
    teachers: Mapping[str, Mapping[str, Any]],
    exported: Mapping[str, Mapping[str, Any]],
    teacher_gate: str,
    paths: Mapping[str, str],
) -> str:
    """Write the whole summary.

    Args:
        scores: The test rows of the score table.
        steps: Rows of the step table.
        cleaning: Content of ``cleaning.json``.
        teachers: ``calibration.json`` by teacher and fold.
        exported: ``calibration.json`` by exported model.
        teacher_gate: What the gate does: refuse, warn or off.
        paths: Files to point at, by what they are.
    """
    n_rows = int(max(row["n"] for row in scores))
    parts = [
        "# Report",
        f"## Scores of every stage on test ({n_rows} rows, log loss in nats)",
        scores_markdown(scores),
        *closed_gap(scores),
        "## Change in log loss from stage to stage on test (same rows; negative is a "
        "gain)",
        step_table(steps, "test"),
        "## The same on dev (each row scored by the fold that did not train on it)",
        step_table(steps, "dev"),
        f"## Teachers on dev: information gain over the prior (gate: {teacher_gate})",
        gate_table(teachers),
        "## Calibrations (cross-fitted effect: teachers on dev, judges on select)",
        calibration_table({**teachers, **exported}),
        "## Cleaning: rows by source",
        cleaning_table(cleaning),
        "## Files",
        "\n".join(f"- {what}: {escape(path)}" for what, path in paths.items()),
    ]
    return "\n\n".join(parts) + "\n"


def closed_gap(scores: Sequence[dict[str, Any]]) -> list[str]:
    """Say which share of the gap from prior to Bayes is closed, if both are known."""
    losses = {row["stage"]: row["log_loss"] for row in scores}
    if not {"prior", "final", "bayes"} <= losses.keys():
        return []
    share = (losses["prior"] - losses["final"]) / (losses["prior"] - losses["bayes"])
    return [
        f"The final model closes {share:.0%} of the gap from guessing the class shares "
        "(`prior`) to the best possible log loss (`bayes`)."
    ]
