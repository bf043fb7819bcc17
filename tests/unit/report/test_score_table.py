import numpy as np
import pytest
from toy_stages import EVALUATION, N_FOLDS, TEACHERS, find, read_csv

from prefdistill.report.predictions import Predictions
from prefdistill.report.score_table import (
    SCORE_COLUMNS,
    STEP_COLUMNS,
    over_folds,
    paired_steps,
    step_pairs,
)
from prefdistill.scores.metrics import Labels, log_loss


def test_score_table_is_complete(toy):
    rows = read_csv(toy.path("scores.csv"))
    assert tuple(rows[0]) == SCORE_COLUMNS
    keys = [tuple(list(row.values())[:5]) for row in rows]
    assert len(set(keys)) == len(keys)
    for name in TEACHERS:
        for stage in ("teacher", "teacher_calibrated"):
            own = find(rows, stage=stage, model=name)
            # 3 folds and all of them, 3 splits, 2 views and their average
            assert len(own) == 4 * 3 * 3
    assert len(find(rows, stage="student")) == 4 * 3 * 3
    assert {r["split"] for r in find(rows, stage="adapters")} == {"select", "test"}
    for stage in ("prior", "length", "trees"):
        assert len(find(rows, stage=stage, split="dev")) == N_FOLDS + 1
        assert len(find(rows, stage=stage, split="test", fold="")) == 1
    for row in rows:
        low, loss, high = (
            float(row[f"log_loss{end}"]) for end in ("_low", "", "_high")
        )
        assert low <= loss <= high
        assert bool(row["swap_agreement"]) == (
            row["views"] == "AB+BA" and row["stage"] not in {"prior", "length", "trees"}
            and row["stage"] != "bayes"
        )  # fmt: skip
    dev = find(rows, stage="teacher", model="qwen", split="dev", views="AB")
    pooled = [int(r["n"]) for r in dev if r["fold"] == ""]
    assert pooled == [sum(int(r["n"]) for r in dev if r["fold"] != "")]


def test_scores_tell_the_known_story(toy):
    rows = read_csv(toy.path("scores.csv"))

    def loss(stage, model=None, split="test", fold=""):
        found = find(rows, stage=stage, split=split, views="AB+BA", fold=fold)
        return float([r for r in found if model in (None, r["model"])][-1]["log_loss"])

    test = toy.common == "test"
    bayes = log_loss(toy.truth[test], toy.label[test])
    assert loss("bayes") == pytest.approx(bayes, abs=1e-6)
    assert loss("bayes") < loss("final") < loss("prior")
    for name in TEACHERS:
        for split in ("dev", "test"):
            raw, scaled = (
                loss(s, name, split) for s in ("teacher", "teacher_calibrated")
            )
            assert scaled < raw - 0.1
    assert loss("teacher", "mean") < loss("teacher", "llama", fold="0")
    assert loss("merged_calibrated") < loss("merged")


def test_steps_are_differences_of_the_scores(toy):
    scores, steps = read_csv(toy.path("scores.csv")), read_csv(toy.path("steps.csv"))
    assert tuple(steps[0]) == STEP_COLUMNS
    pairs = {(s["from"], s["to"]) for s in steps if s["split"] == "test"}
    assert ("teacher_calibrated", "student") in pairs
    assert ("gptq8", "final") in pairs
    assert ("adapters", "merged") in pairs
    for step in steps:
        losses = []
        for stage in (step["from"], step["to"]):
            row = find(
                scores, stage=stage, split=step["split"], views="AB+BA", fold=""
            )[-1]
            assert row["n"] == step["n"]
            losses.append(float(row["log_loss"]))
        assert float(step["difference"]) == pytest.approx(
            losses[1] - losses[0], abs=2e-6
        )
        assert float(step["low"]) <= float(step["difference"]) <= float(step["high"])


def test_step_pairs_lead_to_the_final_model():
    assert ("gptq4", "final") in step_pairs(["merged", "gptq8", "gptq4"], "gptq4")
    assert ("adapters", "final") in step_pairs(["merged"], "adapters_nf4")
    pooled = step_pairs(["gptq4"], "gptq4", is_pooled=True)
    added = [("gptq4_calibrated", "final"), ("trees", "final")]
    assert sorted(pooled) == sorted(step_pairs(["gptq4"], "gptq4") + added)


def test_models_are_joined_by_id_and_steps_use_common_rows():
    ids = np.array(["a", "b", "c", "d"])
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([1, 1, 1], 4)
    order = np.array([2, 0, 3])
    first = Predictions("teacher", "x", 0, "test", ids, {"AB": probs})
    second = Predictions("teacher", "x", 1, "test", ids[order], {"AB": probs[order]})
    (mean,) = over_folds([first, second])
    assert mean.ids.tolist() == ["a", "c", "d"]
    assert mean.probs["AB"] == pytest.approx(probs[[0, 2, 3]])
    labels = Labels(ids, ids, np.array([0, 1, 2, 0]), ids, ids)
    prior = Predictions("prior", "prior", None, "test", ids, {"AB+BA": probs[:, ::-1]})
    pairs = [("prior", "teacher")]
    (step,) = paired_steps([prior, mean], labels, pairs, EVALUATION)
    rows = [0, 2, 3]
    expected = log_loss(probs[rows], labels.label[rows]) - log_loss(
        probs[rows, ::-1], labels.label[rows]
    )
    assert step["n"] == 3
    assert step["difference"] == pytest.approx(expected)
