"""Pool runs that each test one part of the rows; the losses are known."""

import numpy as np
import pytest

from prefdistill.errors import UserError
from prefdistill.report.pooling import (
    LOGITS,
    TABLE,
    compare_runs,
    pool_parts,
    pooled_scaling,
    pooled_steps,
    print_tables,
)
from prefdistill.report.predictions import (
    PREDICTIONS_SCHEMA,
    Predictions,
    predictions_table,
)
from prefdistill.report.score_table import over_folds
from prefdistill.scores.metrics import Labels, log_loss, row_log_loss
from prefdistill.scores.scaling import read_scaling
from prefdistill.settings import EvaluationSettings
from prefdistill.storage.logits import Logits, write_logits
from prefdistill.storage.records import read_json
from prefdistill.storage.tables import write_table

N_ROWS, N_PARTS, N_FOLDS = 120, 3, 2
SETTINGS = EvaluationSettings(n_bootstrap=200, seed=0, n_bins=15, labels_only=False)
LABEL = np.random.default_rng(0).integers(3, size=N_ROWS)
IDS = np.array([f"train:{i}" for i in range(N_ROWS)])


def probs_of(rows, noise, seed):
    """Draw probabilities around the label; less noise means more certainty."""
    logits = np.random.default_rng(seed).normal(0, noise, (N_ROWS, 3))
    logits[np.arange(N_ROWS), LABEL] += 1
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probs[rows]


def two_views(rows, noise, seed):
    return {
        view: probs_of(rows, noise, seed + i) for i, view in enumerate(("AB", "BA"))
    }


def steps_of(predictions, labels):
    rows = pooled_steps(predictions, labels, SETTINGS)
    return {(row["from"], row["to"]): row for row in rows}


def write_part(folder, part, noise=1.0, stages=("student", "merged")):
    """Write a run that tests every third row and has one dev row."""
    test = np.arange(part, N_ROWS, N_PARTS)
    dev = np.setdiff1d(np.arange(N_ROWS), test)[:1]
    split = np.full(N_ROWS, "dev")
    split[test] = "test"
    groups = np.array([f"g{i // 4}" for i in range(N_ROWS)])
    labels = Labels(IDS, split, LABEL, groups, np.full(N_ROWS, "train"))
    prior = np.full((N_ROWS, 3), 1 / 3)
    found = [
        Predictions(stage, stage, None, "test", IDS[test], {"AB+BA": values[test]})
        for stage, values in (("prior", prior), ("trees", probs_of(slice(None), 2, 9)))
    ]
    for fold in range(N_FOLDS):
        for split, rows in (("test", test), ("dev", dev)):
            views = two_views(rows, noise, 2 * fold)
            one = Predictions("student", "student", fold, split, IDS[rows], views)
            found.append(one)
    found += over_folds(found)
    for stage in ("merged", "merged_calibrated"):
        views = two_views(test, noise, 20)
        found.append(Predictions(stage, "merged", None, "test", IDS[test], views))
    logits = np.log([views["AB"], views["BA"][:, [1, 0, 2]]]).swapaxes(0, 1)
    scores = Logits(IDS[test], np.full(len(test), "test"), logits, {"views": [*views]})
    write_logits(folder / LOGITS.format(model="merged"), scores)
    both = {"AB+BA": found[-1].averaged()}
    found.append(Predictions("final", "merged", None, "test", IDS[test], both, 0.5))
    kept = {*stages, "prior", "trees", "merged_calibrated", "final"}
    found = [one for one in found if one.stage in kept]
    table = predictions_table(found, labels)
    write_table(folder / TABLE, table, PREDICTIONS_SCHEMA)
    return found, labels


@pytest.fixture
def parts(tmp_path):
    folders = [tmp_path / f"part{part}" for part in range(N_PARTS)]
    for part, folder in enumerate(folders):
        write_part(folder, part)
    return folders


def test_parts_together_score_every_row_once(parts):
    predictions, labels = pool_parts(parts)
    assert sorted(labels.ids) == sorted(IDS)
    (final,) = [one for one in predictions if one.stage == "final"]
    whole = np.mean([probs_of(slice(None), 1.0, seed) for seed in (20, 21)], axis=0)
    loss = log_loss(final.averaged(), labels.of(final.ids).label)
    assert loss == pytest.approx(log_loss(whole, LABEL), abs=1e-12)


def test_steps_are_differences_of_row_losses(parts):
    predictions, labels = pool_parts(parts)
    steps = {
        (r["from"], r["to"]): r for r in pooled_steps(predictions, labels, SETTINGS)
    }
    trees = row_log_loss(probs_of(slice(None), 2, 9), LABEL).mean()
    final = np.mean([probs_of(slice(None), 1.0, seed) for seed in (20, 21)], axis=0)
    step = steps["trees", "final"]
    assert step["n"] == N_ROWS
    assert step["difference"] == pytest.approx(log_loss(final, LABEL) - trees)
    assert step["low"] < step["difference"] < step["high"]


def test_what_averaging_is_worth_is_measured_against_single_members(parts):
    predictions, labels = pool_parts(parts)
    steps = {
        (r["from"], r["to"]): r for r in pooled_steps(predictions, labels, SETTINGS)
    }
    views = [probs_of(slice(None), 1.0, seed) for seed in (20, 21)]
    single = np.mean([log_loss(view, LABEL) for view in views])
    step = steps["one view of merged_calibrated", "merged_calibrated"]
    both = log_loss(np.mean(views, axis=0), LABEL)
    assert step["difference"] == pytest.approx(both - single)
    views = [two_views(slice(None), 1.0, 2 * k) for k in range(N_FOLDS)]
    folds = [np.mean(list(both.values()), axis=0) for both in views]
    single = np.mean([log_loss(fold, LABEL) for fold in folds])
    step = steps["one fold of student", "student"]
    assert step["difference"] == pytest.approx(
        log_loss(np.mean(folds, axis=0), LABEL) - single
    )


def test_another_configuration_is_compared_on_the_same_rows(parts, tmp_path):
    worse = [tmp_path / f"worse{part}" for part in range(N_PARTS)]
    for part, folder in enumerate(worse):
        write_part(folder, part, noise=3.0)
    predictions, labels = pool_parts(parts)
    rows = compare_runs(pool_parts(worse)[0], predictions, labels, SETTINGS)
    gains = {row["to"]: row for row in rows}
    assert gains["trees"]["difference"] == 0
    assert gains["merged"]["high"] < 0
    assert not any(name.startswith("one ") for name in gains)


def test_a_row_tested_twice_is_refused(parts):
    with pytest.raises(UserError, match=r"part0: tests row id train:\d+, as .*part0"):
        pool_parts([parts[0], parts[0]])


def test_parts_of_different_configurations_are_refused(parts, tmp_path):
    write_part(tmp_path / "odd", 2, stages=("student",))
    with pytest.raises(UserError, match="stage merged of merged is in 2 of 3 runs"):
        pool_parts([*parts[:2], tmp_path / "odd"])


def test_the_tables_are_printed_and_kept(parts, tmp_path, capsys):
    print_tables(parts, parts, tmp_path / "out", evaluation=SETTINGS)
    shown = capsys.readouterr().out
    assert f"| trees | final | test | {N_ROWS} |" in shown
    assert f"| final | merged | AB+BA | {N_ROWS} |" in shown
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"scores.csv", "steps.csv", "other.csv"}


def test_the_judge_is_scaled_by_the_rows_of_all_parts(parts, tmp_path, capsys):
    path = tmp_path / "calibration.json"
    print_tables(parts, [], None, path, SETTINGS)
    record = read_json(path)
    assert record["n_select"] == N_ROWS
    assert f"{path}: fitted on {N_ROWS} rows" in capsys.readouterr().out
    views = two_views(np.arange(N_ROWS), 1.0, 20)
    before = log_loss(np.mean(list(views.values()), axis=0), LABEL)
    assert record["nll_before"] == pytest.approx(before, abs=1e-6)
    fit = read_scaling(path)
    logits = np.log(np.stack(list(views.values()), axis=1))
    scaled = fit.apply(logits)
    after = np.exp(scaled) / np.exp(scaled).sum(axis=2, keepdims=True)
    assert log_loss(after.mean(axis=1), LABEL) < before


def test_a_final_model_without_a_scaling_is_one_line(tmp_path):
    found, labels = write_part(tmp_path, 0)
    found = [one for one in found if one.stage != "merged_calibrated"]
    with pytest.raises(UserError, match="final model merged has no scaling of its own"):
        pooled_scaling([tmp_path], found, labels)
