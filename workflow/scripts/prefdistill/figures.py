"""The report's figures, drawn by matplotlib without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefdistill.files import atomic_path
from prefdistill.metrics import ece, reliability

BLUE, ORANGE, GREY, GREEN = "#3465a4", "#d9822b", "#8a8a8a", "#4e9a06"
# Text stays text in SVG, and ids do not change from run to run.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prefdistill",
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically; the same figure gives the same bytes."""
    suffix = path.suffix.removeprefix(".")
    metadata = {"Date": None} if suffix == "svg" else {"Software": None}
    with atomic_path(path) as temporary, mpl.rc_context(STYLE):
        figure.savefig(temporary, format=suffix, dpi=150, metadata=metadata)


def _axes(width: float, height: float, n_columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, n_columns, squeeze=False)[0])


@mpl.rc_context(STYLE)
def draw_stages(scores: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> Figure:
    """Log loss of each stage on test with its interval, prior first, Bayes as a line.

    Args:
        scores: Rows of the score table: one per stage, with ``stage``, ``log_loss``,
            ``log_loss_low`` and ``log_loss_high`` (nats).
        stages: The stages to draw, from the top down; those without a row are left out.
    """
    rows = {row["stage"]: row for row in scores}
    shown = [stage for stage in stages if stage in rows and stage != "bayes"]
    figure, (axes,) = _axes(6.5, 0.9 + 0.27 * len(shown))
    previous = None
    for place, stage in enumerate(shown):
        row = rows[stage]
        loss = row["log_loss"]
        if previous is not None:
            better = loss <= previous
            axes.plot(
                [previous, loss],
                [place, place],
                color=GREEN if better else ORANGE,
                linewidth=5,
                alpha=0.35,
                solid_capstyle="butt",
            )
            axes.plot([previous] * 2, [place - 1, place], color=GREY, linewidth=0.6)
        axes.errorbar(
            loss,
            place,
            xerr=[[loss - row["log_loss_low"]], [row["log_loss_high"] - loss]],
            fmt="o",
            color=BLUE,
            markersize=4,
            linewidth=1,
        )
        axes.annotate(
            f"{loss:.3f}",
            (row["log_loss_high"], place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
        previous = loss
    if "bayes" in rows:
        best = rows["bayes"]["log_loss"]
        axes.axvline(best, color=GREY, linestyle="--", linewidth=1)
        axes.set_title(f"dashed: the best possible, {best:.3f}")
    axes.set_yticks(range(len(shown)), [stage.replace("_", " ") for stage in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_xlabel("log loss on test (nats), with 95 % interval")
    return figure


@mpl.rc_context(STYLE)
def draw_reliability(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], n_bins: int
) -> Figure:
    """Accuracy against confidence before and after calibration, one panel a model.

    Args:
        panels: For each title raw and calibrated probabilities, both ``(n, 3)``, and
            ``(n,)`` labels.
        n_bins: Number of bins of confidence; empty ones are not drawn.
    """
    figure, all_axes = _axes(3.0 * len(panels), 3.2, len(panels))
    for axes, (title, (raw, calibrated, labels)) in zip(
        all_axes, panels.items(), strict=True
    ):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        for name, probs, color in (
            ("raw", raw, ORANGE),
            ("calibrated", calibrated, BLUE),
        ):
            confidence, correct, n_rows = reliability(probs, labels, n_bins)
            full = n_rows > 0
            axes.plot(confidence[full], correct[full], color=color, linewidth=0.8)
            axes.scatter(
                confidence[full],
                correct[full],
                s=4 + 60 * n_rows[full] / n_rows.sum(),
                color=color,
                clip_on=False,
                label=f"{name}, ECE {ece(probs, labels, n_bins):.3f}",
            )
        axes.set(xlim=(0.3, 1), ylim=(0, 1), title=title, xlabel="confidence")
        axes.legend(frameon=False, loc="lower right")
    all_axes[0].set_ylabel("accuracy")
    return figure


@mpl.rc_context(STYLE)
def draw_budgets(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """What a second pass for a share of the rows gains, one panel a curve.

    The dotted line is what second passes for rows chosen at random would gain on
    average.

    Args:
        rows: Points with ``curve``, ``share``, ``passes`` a row, and the paired
            difference ``from_none`` (nats) with its interval, None at share 0.
    """
    curves = list(dict.fromkeys(row["curve"] for row in rows))
    figure, all_axes = _axes(3.4 * len(curves), 3.0, len(curves))
    for axes, curve in zip(all_axes, curves, strict=True):
        points = [row for row in rows if row["curve"] == curve]
        names = ("passes", "from_none", "from_none_low", "from_none_high")
        passes, loss, low, high = np.array(
            [[row[name] or 0.0 for name in names] for row in points]
        ).T
        axes.plot(passes[[0, -1]], loss[[0, -1]], color=GREY, linestyle=":")
        axes.errorbar(
            passes,
            loss,
            yerr=[loss - low, high - loss],
            fmt="o-",
            color=BLUE,
            markersize=4,
            linewidth=1,
            capsize=2,
        )
        for row, x, y in zip(points, passes, loss, strict=True):
            axes.annotate(
                f"{row['share']:g}",
                (x, y),
                xytext=(5, 4),
                textcoords="offset points",
            )
        axes.set(title=curve.replace("_", " "), xlabel="forward passes a row")
        axes.margins(x=0.12)
    all_axes[0].set_ylabel("log loss less share 0 (nats)")
    return figure


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean over at most the last ``window`` values, as long as the input."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (sums[end] - sums[start]) / (end - start)


@mpl.rc_context(STYLE)
def draw_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Training loss against optimiser steps, one panel a model, one line a fold.

    Args:
        curves: ``(step, loss)`` pairs by name, ``model/run``; smoothed over a tenth of
            the run.
    """
    models = list(dict.fromkeys(name.partition("/")[0] for name in curves))
    figure, all_axes = _axes(3.2 * len(models), 2.8, len(models))
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
