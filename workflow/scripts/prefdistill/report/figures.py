"""Read what the report's figures show, and draw them with matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefdistill.classes import VERDICTS
from prefdistill.report.drawing import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    STYLE,
    as_words,
    make_axes,
    name_rows,
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
from prefdistill.scores.metrics import Labels, ece, reliability
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


@mpl.rc_context(STYLE)
def draw_stages(scores: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> Figure:
    """Draw the log loss on test by stage, and its change from stage to stage.

    A dot is a stage's log loss with its interval. The bar beside it, and the number in
    brackets, is the change since the stage above: blue is a gain. A dashed line marks
    the best possible loss, if known.

    Args:
        scores: Rows of the score table: one per stage, with ``stage``, ``log_loss``,
            ``log_loss_low`` and ``log_loss_high`` (nats).
        stages: The stages to draw, from the top down; a stage without a row is left
            out.
    """
    rows = {row["stage"]: row for row in scores}
    shown = [rows[stage] for stage in stages if stage in rows and stage != "bayes"]
    figure, (axes,) = make_axes(8.0, 1.1 + 0.3 * len(shown))
    for place, row in enumerate(shown):
        loss, high = row["log_loss"], row["log_loss_high"]
        text = f"{loss:.3f}"
        if place:
            before = shown[place - 1]["log_loss"]
            color = BLUE if loss <= before else ORANGE
            axes.barh(place, loss - before, left=before, height=0.6, color=color,
                      alpha=0.3)  # fmt: skip
            axes.plot([before] * 2, [place - 1, place], color=GREY, linewidth=0.6)
            text += f" ({loss - before:+.4f})"
        error = [[loss - row["log_loss_low"]], [high - loss]]
        axes.errorbar(loss, place, xerr=error, fmt="o", color=BLACK, markersize=4,
                      linewidth=1)  # fmt: skip
        axes.annotate(text, (high, place), xytext=(4, 0), textcoords="offset points",
                      va="center")  # fmt: skip
    if "bayes" in rows:
        best = rows["bayes"]["log_loss"]
        axes.axvline(best, color=GREY, linestyle="--", linewidth=1)
        axes.set_title(f"dashed: the best possible log loss, {best:.3f}")
    name_rows(axes, [as_words(row["stage"]) for row in shown])
    axes.margins(x=0.16)
    axes.set_xlabel("log loss on test (nats; lower is better), with 95 % interval")
    return figure


@mpl.rc_context(STYLE)
def draw_reliability(panels: Mapping[str, Panel], n_bins: int) -> Figure:
    """Draw accuracy against confidence before and after calibration, by model.

    Args:
        panels: For each title raw and calibrated probabilities, both ``(n, 3)``, and
            ``(n,)`` labels.
        n_bins: Number of bins of confidence; empty bins are not drawn.
    """
    figure, all_axes = make_axes(3.0 * len(panels), 3.2, len(panels))
    for axes, (title, (raw, calibrated, labels)) in zip(
        all_axes, panels.items(), strict=True
    ):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        for name, probs, color, marker in (
            ("raw", raw, ORANGE, "o"),
            ("calibrated", calibrated, BLUE, "s"),
        ):
            confidence, correct, n_rows = reliability(probs, labels, n_bins)
            full = n_rows > 0
            axes.plot(confidence[full], correct[full], color=color, linewidth=0.8)
            axes.scatter(
                confidence[full],
                correct[full],
                s=4 + 60 * n_rows[full] / n_rows.sum(),
                color=color,
                marker=marker,
                clip_on=False,
                label=f"{name}, ECE {ece(probs, labels, n_bins):.3f}",
            )
        # The largest of three probabilities is at least 1/3.
        axes.set(xlim=(0.3, 1), ylim=(0, 1), title=title, xlabel="confidence")
        axes.legend(frameon=False, loc="lower right")
    all_axes[0].set_ylabel("accuracy")
    return figure


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Average the last ``window`` values at each place, ``(n,)`` float64."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (sums[end] - sums[start]) / (end - start)


@mpl.rc_context(STYLE)
def draw_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Draw training loss against optimiser steps: a panel per model, a line per fold.

    Args:
        curves: ``(step, loss)`` pairs by name, ``model/run``. They are smoothed over a
            tenth of the run.
    """
    models = list(dict.fromkeys(name.partition("/")[0] for name in curves))
    figure, all_axes = make_axes(3.2 * len(models), 2.8, len(models))
    for axes, model in zip(all_axes, models, strict=True):
        for name, points in curves.items():
            owner, _, run = name.partition("/")
            if owner != model or not points:
                continue
            steps, losses = np.array(points, dtype=np.float64).T
            axes.plot(steps, smooth(losses, max(1, len(steps) // 10)), label=run)
        axes.set(title=model, xlabel="optimiser step")
        axes.legend(frameon=False)
    all_axes[0].set_ylabel("training loss")
    return figure


@mpl.rc_context(STYLE)
def draw_confusion(
    panels: Mapping[str, Panel],
) -> Figure:
    """Draw confusion matrices of human verdict and most probable class, by model.

    A cell shows its number of pairs and their share of all pairs with that verdict.

    Args:
        panels: As for ``draw_reliability``; the calibrated probabilities are used.
    """
    figure, all_axes = make_axes(3.0 * len(panels), 3.4, len(panels))
    for axes, (title, (_, probs, labels)) in zip(all_axes, panels.items(), strict=True):
        counts = np.zeros((3, 3), dtype=np.int64)
        np.add.at(counts, (labels, probs.argmax(axis=1)), 1)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for said, guessed in np.ndindex(3, 3):
            share = shares[said, guessed]
            axes.text(guessed, said, f"{counts[said, guessed]:,}\n{share:.0%}",
                      ha="center", va="center",
                      color="white" if share > 0.55 else BLACK)  # fmt: skip
        axes.set_xticks(range(3), VERDICTS)
        axes.set_title(f"{title}, accuracy {np.trace(counts) / counts.sum():.3f}")
        axes.set_xlabel("most probable class of the model")
        name_rows(axes, VERDICTS)
        axes.spines[:].set_visible(False)
    all_axes[0].set_ylabel("human verdict")
    return figure


@mpl.rc_context(STYLE)
def draw_swap(scores: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the share of test pairs with the same verdict in both orders, by stage.

    Args:
        scores: Rows of the score table, one per stage; rows without a
            ``swap_agreement`` are left out.
    """
    shown = [row for row in scores if row["swap_agreement"] is not None]
    shares = [row["swap_agreement"] for row in shown]
    figure, (axes,) = make_axes(8.0, 1.1 + 0.3 * len(shown))
    axes.barh(range(len(shown)), shares, height=0.6, color=BLUE)
    for place, share in enumerate(shares):
        axes.annotate(f"{share:.3f}", (share, place), xytext=(4, 0), va="center",
                      textcoords="offset points")  # fmt: skip
    name_rows(axes, [as_words(row["stage"]) for row in shown])
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("share of test pairs with the same verdict in both orders")
    return figure


@mpl.rc_context(STYLE)
def draw_weights(
    record: Mapping[str, Any], sample_weights: Mapping[str, Mapping[str, float]]
) -> Figure:
    """Draw the weight of each fold in the ensemble, and of the rows of each student.

    Args:
        record: Content of ``weights.json``: ``folds``, ``weights`` and ``method``, and
            for weights from advantages ``advantages`` (nats).
        sample_weights: For each student quantiles of its rows' weights, by share
            ``"0.05"``, ``"0.25"``, ``"0.5"``, ``"0.75"``, ``"0.95"``. Without students
            the second panel is left out.
    """
    folds, weights = record["folds"], record["weights"]
    height = 1.3 + 0.35 * max(len(folds), len(sample_weights))
    figure, (axes, *more) = make_axes(9.0, height, 2 if sample_weights else 1)
    axes.barh(range(len(folds)), weights, height=0.6, color=BLUE)
    gains = record.get("advantages") or [None] * len(folds)
    for place, (weight, gain) in enumerate(zip(weights, gains, strict=True)):
        text = f"{weight:.4f}" + (f" (adv. {gain:+.4f})" if gain is not None else "")
        beside = (max(weight, 1 / len(folds)), place)
        axes.annotate(text, beside, xytext=(6, 0), va="center",
                      textcoords="offset points")  # fmt: skip
    axes.axvline(1 / len(folds), color=GREY, linestyle="--", linewidth=1)
    axes.set_title(f"method: {record['method']}; dashed: equal weights")
    name_rows(axes, [f"fold {fold}" for fold in folds])
    axes.set_xlim(0, 1.7 * max(*weights, 1 / len(folds)))
    axes.set_xlabel("weight in the ensemble")
    for panel in more:
        _draw_spread(panel, sample_weights)
    return figure


def _draw_spread(axes: Axes, quantiles: Mapping[str, Mapping[str, float]]) -> None:
    """Draw a thin line over 90 % of the rows, a bar over half, a dot at the median."""
    for place, shares in enumerate(quantiles.values()):
        for low, high, width in (("0.05", "0.95", 1), ("0.25", "0.75", 6)):
            span = [shares[low], shares[high]]
            axes.plot(span, [place] * 2, color=BLUE, linestyle="-", linewidth=width)
        axes.plot(shares["0.5"], place, "o", color=BLACK, markersize=5)
    axes.axvline(1, color=GREY, linestyle="--", linewidth=1)
    axes.set_title("line: 90 % of the rows, bar: half, dot: median")
    name_rows(axes, list(quantiles))
    axes.margins(x=0.1)
    axes.set_xlabel("weight of a training row (mean 1)")


@mpl.rc_context(STYLE)
def draw_lengths(lengths: Mapping[str, np.ndarray], max_length: int) -> Figure:
    """Draw histograms of the tokens per row before the cut, by split.

    Args:
        lengths: For each split ``(n,)`` tokens of its rows before the cut.
        max_length: ``text.max_length``, drawn as a line.
    """
    figure, all_axes = make_axes(3.0 * len(lengths), 3.2, len(lengths))
    longest = max(int(values.max(initial=1)) for values in lengths.values())
    # The longest 1 % of the rows would squeeze all others into a few bars.
    end = max(1.1 * max_length, *(np.quantile(v, 0.99) for v in lengths.values()))
    bins = np.linspace(0, min(end, longest + 1), 41)
    for axes, (split, values) in zip(all_axes, lengths.items(), strict=True):
        axes.hist(np.minimum(values, bins[-1]), bins=bins, color=BLUE)
        limit = axes.axvline(max_length, color=ORANGE, linestyle="--")
        cut = (values > max_length).mean()
        axes.set_title(f"{split}: {len(values):,} rows, {cut:.1%} cut")
        axes.set_xlabel("tokens per row")
    all_axes[0].set_ylabel("rows")
    all_axes[0].legend([limit], [f"max_length: {max_length:,}"], frameon=False)
    return figure
