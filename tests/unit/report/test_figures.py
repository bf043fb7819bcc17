import numpy as np
import pytest
from plot_report import main as plot_report
from toy_scores import SCORES
from toy_stages import JUDGES, N_FOLDS, TEACHERS

from prefdistill.report.figures import (
    draw_confusion,
    draw_curves,
    draw_lengths,
    draw_reliability,
    draw_stages,
    draw_swap,
    draw_weights,
    row_weight_spreads,
    smooth,
)
from prefdistill.report.inputs import FigureFiles
from prefdistill.report.markdown_tables import one_per_stage, rows_on_test, stage_order
from prefdistill.storage.records import write_json


def test_stages_figure_shows_every_stage_and_bayes():
    rows = one_per_stage(rows_on_test(SCORES, ["merged"]))
    figure = draw_stages(rows, stage_order(["merged"]))
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["prior", "teacher", "final"]
    assert "0.800" in axes.get_title()
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["1.100", "0.950 (-0.1500)", "0.900 (-0.0500)"]
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert np.allclose(bars, [(0.95, 0.15), (0.9, 0.05)]) or np.allclose(
        bars, [(1.1, -0.15), (0.95, -0.05)]
    )


def test_swap_figure_leaves_out_stages_without_two_views():
    (axes,) = draw_swap(one_per_stage(rows_on_test(SCORES, ["merged"]))).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        *("teacher", "final", "bayes")
    ]


def test_confusion_figure_counts_rows_by_verdict_and_guess():
    probs = np.eye(3)[[0, 0, 1, 2, 2]]
    labels = np.array([0, 1, 1, 0, 2])
    (axes,) = draw_confusion({"judge": (probs, probs, labels)}).axes
    cells = [text.get_text() for text in axes.texts]
    assert cells == [
        *("1\n50%", "0\n0%", "1\n50%"),
        *("1\n50%", "1\n50%", "0\n0%"),
        *("0\n0%", "0\n0%", "1\n100%"),
    ]
    assert axes.get_title() == "judge, accuracy 0.600"


def test_weights_figure_names_advantages():
    record = {"folds": [0, 2], "weights": [0.4, 0.6], "method": "given"}
    (axes,) = draw_weights(record, {}).axes
    assert [text.get_text() for text in axes.texts] == ["0.4000", "0.6000"]
    (axes,) = draw_weights(record | {"advantages": [-0.1, 0.1]}, {}).axes
    assert axes.texts[1].get_text() == "0.6000 (adv. +0.1000)"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["fold 0", "fold 2"]


def test_weights_figure_shows_how_the_weights_of_rows_spread():
    record = {"folds": [0, 1], "weights": [0.5, 0.5], "method": "equal"}
    shares = ("0.05", "0.25", "0.5", "0.75", "0.95")
    spread = dict(zip(shares, (0.5, 0.8, 1.0, 1.2, 1.9), strict=True))
    _, axes = draw_weights(record, {"fold1": spread}).axes
    lines = [line.get_xdata().tolist() for line in axes.lines[:3]]
    assert lines == [[0.5, 1.9], [0.8, 1.2], [1.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fold1"]


def test_lengths_figure_says_how_many_rows_are_cut():
    lengths = {"train": np.arange(1, 101), "dev": np.array([5, 6])}
    figure = draw_lengths(lengths, 90)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["train: 100 rows, 10.0% cut", "dev: 2 rows, 0.0% cut"]
    for axes, n_rows in zip(figure.axes, (100, 2), strict=True):
        assert sum(bar.get_height() for bar in axes.patches) == n_rows


def test_reliability_figure_has_a_panel_per_model():
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet([1, 1, 1], 200), rng.integers(3, size=200)
    figure = draw_reliability(
        {"a": (probs, probs, labels)} | {"b": (probs,) * 2 + (labels,)}, 10
    )
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]


def test_curves_survive_an_empty_run():
    points = [(step, 1 / step) for step in range(1, 40)]
    figure = draw_curves(
        {"llama/fold 0": points, "llama/fold 1": [], "student/0": points}
    )
    assert [axes.get_title() for axes in figure.axes] == ["llama", "student"]


def test_smooth_equals_a_loop():
    values = np.random.default_rng(0).normal(size=30)
    expected = [values[max(0, i - 4) : i + 1].mean() for i in range(30)]
    assert smooth(values, 5) == pytest.approx(expected)


def test_figures_of_the_toy(toy, tmp_path):
    folds = [toy.path(f"fold{k}.parquet") for k in range(N_FOLDS)]
    curve = tmp_path / "train.jsonl"
    curve.write_text('{"step": 1, "loss": 1.1}\n{"step": 2, "loss": null}\n')
    names = ("stages", "reliability", "confusion", "swap", "curves", "weights")
    figures = {name: tmp_path / f"{name}.svg" for name in names}
    logits = [pair for name in TEACHERS for pair in toy.teacher_paths(name)]
    plot_report(
        FigureFiles(
            scores=toy.path("scores.csv"),
            folds=folds,
            teacher_logits=[raw for raw, _ in logits],
            teacher_calibrated=[calibrated for _, calibrated in logits],
            final=toy.path("gptq8.parquet"),
            curves=[curve, curve],
            weights=toy.path("weights.json"),
            rows=[],
        ),
        figures,
        teachers=TEACHERS,
        judges=JUDGES,
        runs=["llama/fold 0", "student/fold 0"],
        n_bins=10,
    )
    for figure in figures.values():
        assert figure.read_text().lstrip().startswith("<?xml")
    assert "teacher calibrated" in figures["stages"].read_text()


def test_students_whose_rows_weigh_the_same_have_no_spread(tmp_path):
    quantiles = {"0.5": 1.0}
    paths = [tmp_path / f"fold{k}" / "rows.json" for k in range(2)]
    write_json(paths[0], {"n_rows": 3})
    write_json(paths[1], {"n_rows": 3, "weight_quantiles": quantiles})
    assert row_weight_spreads(paths) == {"fold1": quantiles}
