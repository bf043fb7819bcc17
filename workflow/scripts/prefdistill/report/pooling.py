"""Pool runs that each test one part of the training rows: ``prefdistill pool``.

With ``folds.test_part`` the m runs of a configuration test every training row once.
This module concatenates their test predictions and compares stages row by row. It also
compares an average with its members: single folds or single views.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from prefdistill.errors import UserError
from prefdistill.report.predictions import Predictions, read_predictions_table
from prefdistill.report.score_table import (
    MEAN_MODEL,
    SCORE_COLUMNS,
    STEP_COLUMNS,
    concatenate_folds,
    score_rows,
    step_pairs,
)
from prefdistill.scores.calibration import calibrate_judge
from prefdistill.scores.metrics import Labels, group_bootstrap, row_log_loss
from prefdistill.settings import EvaluationSettings
from prefdistill.storage.joining import find_rows
from prefdistill.storage.logits import Logits, read_logits
from prefdistill.storage.records import write_json
from prefdistill.storage.whole_files import write_csv

TABLE = "results/report/predictions.parquet"
LOGITS = "results/predictions/{model}/logits.npz"
ONE_FOLD, ONE_VIEW = "one fold of ", "one view of "
SHOWN = [name for name in SCORE_COLUMNS if name not in ("fold", "split")]

# The defaults of `evaluation`: pooling needs no configuration.
EVALUATION = EvaluationSettings(n_bootstrap=1000, seed=0, n_bins=15, labels_only=False)

# Row ids and the losses of these rows, in nats.
Losses = tuple[np.ndarray, np.ndarray]


def pool_parts(folders: Sequence[Path]) -> tuple[list[Predictions], Labels]:
    """Join the test predictions of several runs, and the rows' labels.

    Args:
        folders: The runs' working folders.

    Raises:
        UserError: If a row is tested twice, or a stage is missing in a run.
    """
    by_key: dict[tuple, list[Predictions]] = {}
    labels: list[Labels] = []
    tested: dict[str, Path] = {}
    for folder in folders:
        found, known = read_predictions_table(folder / TABLE)
        known = known.rows(known.split == "test")
        for name in known.ids.tolist():
            if name in tested:
                raise UserError(
                    f"{folder}: tests row id {name}, as {tested[name]} does; give each "
                    "run its own folds.test_part"
                )
            tested[name] = folder
        labels.append(known)
        for one in found:
            if one.split == "test":
                by_key.setdefault((one.stage, one.model, one.fold), []).append(one)
    for (stage, model, _), parts in by_key.items():
        if len(parts) != len(folders):
            raise UserError(
                f"{folders[0]}: stage {stage} of {model} is in {len(parts)} of "
                f"{len(folders)} runs; run all parts with the same configuration"
            )
    pooled = [
        replace(concatenate_folds(parts), fold=fold, agreement=None)
        for (_, _, fold), parts in by_key.items()
    ]
    columns = [
        np.concatenate([getattr(known, field.name) for known in labels])
        for field in fields(Labels)
    ]
    return pooled, Labels(*columns)


def pooled_scaling(
    folders: Sequence[Path], predictions: Sequence[Predictions], labels: Labels
) -> dict[str, Any]:
    """Fit the final judge's vector scaling on the test rows of all parts.

    Together the parts test all training rows; ``select`` is a tenth of them or less. A
    judge that is trained on all rows with the same settings can use this scaling.

    Args:
        folders: The runs' working folders.
        predictions: Predictions of ``pool_parts``.
        labels: Labels of ``pool_parts``.

    Returns:
        A record for ``calibration.json``, with its cross-fitted effect.

    Raises:
        UserError: If a run lacks the final model's logits, or the final model has no
            calibration of its own.
    """
    model = next(one.model for one in predictions if one.stage == "final")
    judge = [one for one in predictions if one.stage == f"{model}_calibrated"]
    if not judge:
        raise UserError(
            f"{folders[0]}: the final model {model} has no scaling of its own; set "
            "predict.model to merged, gptq8 or gptq4"
        )
    parts = []
    for folder in folders:
        scores = read_logits(folder / LOGITS.format(model=model))
        parts.append(scores.select(scores.split == "test"))
    columns = [
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("ids", "split", "logits")
    ]
    scores = Logits(*columns, meta={"views": parts[0].views})
    return calibrate_judge(scores, labels, "vector", split="test")[1]


def stage_losses(
    predictions: Sequence[Predictions], labels: Labels
) -> dict[str, Losses]:
    """Compute row-wise log losses of every stage, by its name in the table.

    Returns:
        Name to ``(ids, losses)``. Several teachers are represented by their mean. The
        names ``one fold of X`` and ``one view of X`` hold the mean loss of the single
        folds or views of stage X.
    """
    whole: dict[str, Predictions] = {}
    folds: dict[tuple[str, str], list[Predictions]] = {}
    for one in predictions:
        if one.fold is not None:
            folds.setdefault((one.stage, one.model), []).append(one)
        elif one.stage not in whole or one.model == MEAN_MODEL:
            whole[one.stage] = one

    def losses(one: Predictions, probs: np.ndarray) -> np.ndarray:
        return row_log_loss(probs, labels.of(one.ids).label)

    found: dict[str, Losses] = {}
    for stage, one in whole.items():
        found[stage] = one.ids, losses(one, one.averaged())
        if len(one.probs) > 1:
            views = [losses(one, probs) for probs in one.probs.values()]
            found[ONE_VIEW + stage] = one.ids, np.mean(views, axis=0)
    for (stage, _), parts in folds.items():
        if all(np.array_equal(part.ids, parts[0].ids) for part in parts):
            values = [losses(part, part.averaged()) for part in parts]
            found[ONE_FOLD + stage] = parts[0].ids, np.mean(values, axis=0)
    return found


def pooled_pairs(predictions: Sequence[Predictions]) -> list[tuple[str, str]]:
    """List the stages to compare: the pipeline's steps, and averages with members."""
    stages = {one.stage for one in predictions}
    judges = [s for s in dict.fromkeys(one.stage for one in predictions)
              if f"{s}_calibrated" in stages and s != "teacher"]  # fmt: skip
    final = next(one.model for one in predictions if one.stage == "final")
    scored = f"{final}_calibrated" if final in judges else "adapters"
    return [
        *step_pairs(judges, final, is_pooled=True),
        (ONE_FOLD + "student", "student"),
        (ONE_FOLD + "student", "adapters"),
        (ONE_FOLD + "student", "merged"),
        (ONE_VIEW + scored, scored),
        ("teacher_calibrated", "final"),
        ("length", "final"),
    ]


def _compare(
    before: Losses, after: Losses, labels: Labels, evaluation: EvaluationSettings
) -> tuple[int, float, float, float]:
    """Compare common rows: their number, mean difference of losses, its interval."""
    ids = before[0][np.isin(before[0], after[0])]
    values = []
    for own, losses in (before, after):
        values.append(losses[find_rows(own, ids)])
    groups = labels.of(ids).group
    span = group_bootstrap(
        values[1] - values[0],
        groups,
        n_bootstrap=evaluation.n_bootstrap,
        seed=evaluation.seed,
    )
    return len(ids), span.mean, span.low, span.high


def pooled_steps(
    predictions: Sequence[Predictions], labels: Labels, evaluation: EvaluationSettings
) -> list[dict[str, Any]]:
    """Make a step table on the pooled test rows; a negative difference is a gain.

    Args:
        predictions: Predictions of ``pool_parts``.
        labels: Labels of ``pool_parts``.
        evaluation: Bootstrap draws and their seed.

    Returns:
        Rows with the keys ``STEP_COLUMNS``; losses in nats.
    """
    losses = stage_losses(predictions, labels)
    table = []
    for start, end in dict.fromkeys(pooled_pairs(predictions)):
        if start in losses and end in losses:
            values = _compare(losses[start], losses[end], labels, evaluation)
            row = (start, end, "test", *values)
            table.append(dict(zip(STEP_COLUMNS, row, strict=True)))
    return table


def compare_runs(
    before: Sequence[Predictions],
    after: Sequence[Predictions],
    labels: Labels,
    evaluation: EvaluationSettings,
) -> list[dict[str, Any]]:
    """Compare with another configuration, stage by stage, on the same test rows.

    Args:
        before: Predictions of one configuration, pooled.
        after: Those of another.
        labels: Labels of all rows.
        evaluation: Bootstrap draws and their seed.

    Returns:
        Rows with the keys ``STEP_COLUMNS``; losses in nats.

    Raises:
        UserError: If the two share no row.
    """
    first, second = stage_losses(before, labels), stage_losses(after, labels)
    table = []
    for stage in first:
        if stage in second and not stage.startswith((ONE_FOLD, ONE_VIEW)):
            if not np.isin(first[stage][0], second[stage][0]).any():
                raise UserError("the two groups of runs test no row in common")
            values = _compare(first[stage], second[stage], labels, evaluation)
            row = (f"other {stage}", stage, "test", *values)
            table.append(dict(zip(STEP_COLUMNS, row, strict=True)))
    return table


def markdown(rows: list[dict], columns: list[str]) -> str:
    """Write a Markdown table without padding, four decimals and empty for None."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.4f}"
        return "" if value is None else str(value)

    lines = [columns, ["---"] * len(columns)]
    lines += [[cell(row[name]) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_tables(
    parts: list[Path],
    other: list[Path],
    out: Path | None,
    scaling: Path | None = None,
    evaluation: EvaluationSettings = EVALUATION,
) -> None:
    """Print the pooled tables, and write what is asked for.

    Args:
        parts: Working folders of the runs.
        other: Those of another configuration on the same rows; may be empty.
        out: Folder for the tables as CSV files.
        scaling: File for a scaling of the final judge, fitted on all pooled rows.
        evaluation: Bootstrap draws, their seed, bins of confidence.

    Raises:
        UserError: As ``pool_parts``, ``compare_runs`` and ``pooled_scaling``.
    """
    predictions, labels = pool_parts(parts)
    whole = [one for one in predictions if one.fold is None]
    scores = score_rows(whole, labels, evaluation)
    tables = {"scores": (scores, SCORE_COLUMNS)}
    tables["steps"] = pooled_steps(predictions, labels, evaluation), STEP_COLUMNS
    if other:
        compared = compare_runs(pool_parts(other)[0], predictions, labels, evaluation)
        tables["other"] = compared, STEP_COLUMNS
    for name, (rows, columns) in tables.items():
        if out is not None:
            write_csv(out / f"{name}.csv", rows, columns)
        if name == "scores":  # the terminal shows only each stage's averaged views
            averaged = {one.stage: "+".join(one.probs) for one in whole}
            rows = [row for row in rows if row["views"] == averaged[row["stage"]]]
            columns = SHOWN
        print(markdown(rows, list(columns)), end="\n\n")
    if scaling is not None:
        record = pooled_scaling(parts, predictions, labels)
        write_json(scaling, record)
        print(
            f"{scaling}: fitted on {record['n_select']} rows; cross-fitted log loss "
            f"{record['nll_before']:.4f} -> {record['nll_after']:.4f}"
        )


def main(arguments: Sequence[str], prog: str) -> None:
    """Run ``prefdistill pool``.

    Raises:
        UserError: As ``print_tables``.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Pool finished runs, each with its own `folds.test_part`, into one "
        "score of all training\nrows. Prints the scores of every stage and the paired "
        "differences between stages.",
        epilog=f"example: {prog} part0 part1 part2 --other plain0 plain1 plain2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="+", type=Path, help="working folders of the runs"
    )
    parser.add_argument(
        "--other", nargs="+", type=Path, default=[], metavar="PART",
        help="runs of another configuration on the same rows: also print what each "
        "stage gains over theirs",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="keep the tables as CSV files"
    )
    parser.add_argument(
        "--scaling", type=Path, metavar="FILE",
        help="write the final judge's scaling, fitted on all pooled rows, as the "
        "calibration.json of a run on all rows",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    print_tables(given.parts, given.other, given.out, given.scaling)
